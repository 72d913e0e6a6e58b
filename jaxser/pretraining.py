"""A pretraining as it goes: updates, looks at held-out speech, states saved on the way and found again.

States are Orbax checkpoints in OUT.training, whole or not there. What a state does not hold follows from the seed and the
number of updates done, so that going on from one gives what a training gives that was never cut short: to the bit on a
CPU, where XLA adds in one order; on a GPU with XLA_FLAGS=--xla_gpu_deterministic_ops=true.
"""

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath
from tqdm import tqdm

from jaxser import audio, checkpoint, hosts, states, wav2vec
from jaxser.architecture import Architecture
from jaxser.command import differences
from jaxser.crops import Batch, Plan, Reader
from jaxser.errors import CallError, WorkError
from jaxser.hosts import say
from jaxser.network import parameter_shapes
from jaxser.recipes import Recipe
from jaxser.selfsupervised import Learner, State, make_schedule

KIND = "a pretraining under way"
"""What a saved state says that it holds."""

VALIDATION_SECONDS = 600.0
"""About so much held-out sound is heard at each look, where there is as much."""

LOOK_BATCHES = 20
"""Where training's own batches would be fewer than that in a look, smaller ones are heard."""

CHECK = 25
"""Updates between two looks at the loss for a NaN, and between two moves of the progress bar."""


class Reading(NamedTuple):
    """How recordings are read: threads (0: one a core), GiB for what was decoded, range of the gain."""

    jobs: int
    memory: float
    gain: tuple[float, float]


class Course(NamedTuple):
    """One training: who learns, from what, scored on what, where its states lie."""

    learner: Learner
    plan: Plan
    held: Plan
    reading: Reading
    recipe: Recipe
    out: str


def go_on(course: Course, state: State, note: dict[str, Any], look_every: int, save_every: int) -> tuple[State, dict[str, Any]]:
    """From update `note["updates"]` to the last one, with a look at held-out speech and a saved state every so many.

    The note keeps count; a row of its `curve` is one look. Raises WorkError where a loss or gradient is no finite
    number; the last saved state is then sound.
    """
    learner, plan, recipe = course.learner, course.plan, course.recipe
    reader = Reader(plan.recordings, *course.reading)
    looker = Reader(course.held.recordings, course.reading.jobs, course.reading.memory / 10)
    looked_at = batches_of_a_look(course.held)
    first, last, rate = note["updates"], recipe.updates, make_schedule(recipe)
    began, before, pending = time.monotonic(), note["seconds"], []
    reads = reader.read(plan.batches(first, last), plan.seed, first, hosts.index(), hosts.count())
    hidden = not (hosts.first() and sys.stderr.isatty())
    with tqdm(total=last, initial=first, desc="pretrain", unit="update", disable=hidden, leave=False) as bar:
        for number, read in enumerate(reads, first + 1):
            state, metrics = learner.update(state, read)
            pending.append(metrics)
            note["hours_heard"] += read.samples / audio.SAMPLE_RATE / 3600
            look = number % look_every == 0 or number == last
            save = number % save_every == 0 or number == last
            if not (look or save or number % CHECK == 0):
                continue
            note["since"] += [_finite(m, number - len(pending) + 1 + i, course.out) for i, m in enumerate(pending)]
            bar.update(len(pending))
            bar.set_postfix_str(f"loss {note['since'][-1][0]:.3f}", refresh=False)
            pending = []
            note["updates"], note["seconds"] = number, before + time.monotonic() - began
            if look:
                loss, right, norm = np.mean(note["since"], axis=0)
                row = {"hours_heard": note["hours_heard"], "loss": loss, "accuracy": right, "norm": norm}
                row |= {"learning_rate": float(rate(number - 1)), "seconds": note["seconds"]}
                row |= _score(learner, looked_at, looker, state)
                note["curve"].append({"updates": number} | {name: round(float(v), 6) for name, v in row.items()})
                note["since"] = []
                say(_in_words(note, last, (time.monotonic() - began) / (number - first)))
            if look or save:
                # The first reason stays: one of a part comes again, elsewhere in the file, and after a kill anew.
                note["left_out"] = _of_all_hosts(looker.left_out | reader.left_out) | note["left_out"]
            if save:
                _save(course.out, state, note)
    return state, note


def _finite(metrics: Any, number: int, out: str) -> list[float]:
    # Loss, accuracy and gradient norm of an update.
    values = [float(value) for value in metrics]
    if not np.isfinite(values).all():
        raise WorkError(
            f"the loss is {values[0]} and the gradient's norm {values[2]} at update {number}: begin anew at another --out "
            f"with a lower --learning-rate or --clip-norm{_kept(out)}"
        )
    return values


def _kept(out: str) -> str:
    saved = states.found(under_way(out))
    return f"; the last sound state is kept: --initial {saved[-1]} goes on from there" if saved else ""


def _of_all_hosts(left_out: Mapping[str, str]) -> dict[str, str]:
    # Each host reads its own rows and knows of its own bad files.
    return {name: reason for some in hosts.tell(lambda: dict(left_out)) for name, reason in some.items()}


def batches_of_a_look(held: Plan) -> list[Batch]:
    """What every look hears of held-out speech, of which `held` is training's own plan: the first batches of an epoch.

    Training's batches may be so large that one or two are a look, and hear crops of one length alone. Then these are smaller,
    and the first ones of each length come first.
    """
    wanted = VALIDATION_SECONDS * audio.SAMPLE_RATE
    if (count := round(wanted / held.batch)) >= LOOK_BATCHES:
        return held.epoch(0)[:count]
    least = held.crop * held.devices  # a row for each device
    batches = replace(held, batch=min(held.batch, max(round(wanted / LOOK_BATCHES), least))).epoch(0)
    first: dict[int, int] = {}
    for number, batch in enumerate(batches):
        first.setdefault(batch.length, number)
    chosen, heard = [], 0
    for number in dict.fromkeys([*first.values(), *range(len(batches))]):
        batch = batches[number]
        if heard < wanted or number == first[batch.length]:
            chosen.append(batch)
            heard += sum(crop.samples for crop in batch.crops)
    return chosen


def _score(learner: Learner, batches: Sequence[Batch], looker: Reader, state: State) -> dict[str, float]:
    if not batches:
        return {}
    # The looker changes no level, so that no seed is asked for.
    reads = looker.read(batches, 0, 0, hosts.index(), hosts.count())
    found = [learner.score(state, read, i) for i, read in enumerate(reads)]
    loss, positives, correct = np.sum([[float(value) for value in sums] for sums in found], axis=0)
    return {"held_out_loss": loss / positives, "held_out_accuracy": correct / positives} if positives else {}


def _in_words(note: Mapping[str, Any], last: int, seconds_an_update: float) -> str:
    row = note["curve"][-1]
    left = round((last - row["updates"]) * seconds_an_update)
    held = f", held out {row['held_out_loss']:.3f} and {100 * row['held_out_accuracy']:.1f} %" if "held_out_loss" in row else ""
    speed = note["hours_heard"] / note["updates"] / seconds_an_update * 3600
    return (
        f"update {row['updates']:,} of {last:,}: loss {row['loss']:.3f}, right {100 * row['accuracy']:.1f} %{held}; "
        f"{note['hours_heard']:.1f} h heard ({note['updates'] / note['updates_an_epoch']:.1f} epochs), {speed:.0f} h an hour, "
        f"{left // 3600}:{left // 60 % 60:02}:{left % 60:02} left"
    )


def resume(course: Course, state: State, note: dict[str, Any]) -> tuple[State, dict[str, Any]]:
    """The last sound state and its note, or what was given where none was saved.

    Raises CallError for one of other settings, and WorkError where none is sound or one cannot be read now.
    """
    saved = states.found(under_way(course.out))
    _demand_agreement(course.out, note, " ".join(path.name for path in saved) or "none")
    if not saved:
        return state, note
    leaves, found = _last_sound(saved)
    if differing := differences(found["settings"], note["settings"]):
        raise CallError(
            f"{under_way(course.out)} is the training of other settings ({differing}): give another --out, or delete it"
        )
    state = states.restored(state, leaves)
    say(f"going on after update {found['updates']:,}")
    kept = {name: found[name] for name in ("updates", "hours_heard", "seconds", "curve", "since")}
    return course.learner.place(state), note | kept | {"left_out": note["left_out"] | found["left_out"]}


def _last_sound(saved: Sequence[epath.Path]) -> tuple[dict[str, Any], dict[str, Any]]:
    # The same one on all hosts: what is damaged for one of them none goes on from.
    loaded, damage = [], []

    def load(folder: epath.Path) -> str:
        try:
            loaded[:] = [checkpoint.load(folder, KIND)]
        except checkpoint.DiskError:
            raise  # that is no damage, and ends the work on all hosts
        except (CallError, WorkError) as error:
            return str(error)
        return ""

    for folder in reversed(saved):
        if wrong := [text for text in hosts.tell(lambda folder=folder: load(folder)) if text]:
            damage.append((folder, wrong[0]))
            continue
        for damaged, text in damage:
            say(f"{text}: it goes, for the state before it")
            hosts.of_first(damaged.rmtree)  # its update comes again and is saved there
        return loaded[0]
    raise WorkError(f"{damage[0][1]}; without a sound state nothing goes on: delete {saved[-1].parent} to begin anew")


def _demand_agreement(out: str, note: Mapping[str, Any], state: str) -> None:
    hosts.demand_agreement(
        [note["settings"], note["updates_an_epoch"], state],
        f"the hosts do not find the same recordings, settings or saved state ({state} here): --out {out} and --audio must lie "
        "on a disk that all of them share",
    )


def initial(weights: str) -> tuple[Architecture, dict[str, Any]]:
    """Architecture and parameters to begin with, from weights of any kind or from a saved state."""
    folder = checkpoint.absolute(weights)
    if folder.parent.name.endswith(".training"):
        leaves, note = checkpoint.load(weights, KIND)
        architecture = Architecture.from_json(note["settings"]["recipe"]["architecture"])
        shapes = parameter_shapes(architecture) | {wav2vec.PREDICTIONS: {"bias": 0, "kernel": 0}}
        structure = jax.tree.structure(shapes)  # parameters are the first leaves of a state
        return architecture, jax.tree.unflatten(structure, [leaves[name] for name in sorted(leaves)][: structure.num_leaves])
    architecture, params, _ = wav2vec.load_params(weights)
    return architecture, params


def begin(out: str) -> None:
    """Make the folder of states, so that a place that cannot be written is found before any work. Raises OSError."""
    folder = under_way(out)
    folder.mkdir(parents=True, exist_ok=True)
    trial = folder / f".trial-{hosts.index()}"
    trial.write_text("")
    trial.unlink()


def _save(out: str, state: State, note: Mapping[str, Any]) -> None:
    # Whole or not at all; then those before it go.
    folder, leaves = under_way(out) / f"{note['updates']:08}", states.named(state)
    make_room(folder, leaves)
    checkpoint.save(folder, KIND, leaves, note)
    if hosts.first():
        states.forget_older(under_way(out))


def make_room(path: str | epath.Path, params: Mapping[str, Any]) -> None:
    """What goes before `checkpoint.save` on several hosts: all of them hear where the first one finds no room."""
    if hosts.count() > 1:
        hosts.of_first(lambda: checkpoint.make_room(path, params))


def under_way(out: str) -> epath.Path:
    """The folder of states of the training that will write `out`."""
    return checkpoint.absolute(out.rstrip("/") + ".training")


def forget(out: str) -> None:
    """Let go of all saved states."""
    states.forget(under_way(out))
