"""python -m jaxser.pretrain: unlabelled audio -> wav2vec weights, by the objective of fairseq.

What every update hears follows from the seed and its number, so that work that was cut short goes on and ends with the same
bits. What is under way lies beside the result, in OUT.training, and goes when the result is there.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import numpy as np
import tyro
from platformdirs import user_cache_path

from jaxser import audio, cards, checkpoint, contrastive, crops, devices, hosts, pretraining, protocol, recordings, wav2vec
from jaxser.architecture import Architecture, parse_layers
from jaxser.command import demand_at_least, differences, run_command
from jaxser.crops import Plan
from jaxser.digests import digests, text_digest
from jaxser.errors import CallError, WorkError
from jaxser.hosts import say
from jaxser.pretraining import Course, Reading
from jaxser.recipes import RECIPES, Recipe
from jaxser.recordings import Recording
from jaxser.results import claimed
from jaxser.selfsupervised import make_learner


@dataclass(frozen=True)
class Config:
    """Train a wav2vec on unlabelled speech and write weights that the other commands take (--weights OUT).

    Work that was cut short goes on with the same command.
    """

    audio: tuple[Path, ...]
    """Folders, searched whole, and CSV files with a column `path` (relative to the CSV) and perhaps `speaker`."""
    out: str
    """The folder to write. May be remote (gs://)."""
    recipe: Literal["nano", "base", "large"] = "nano"
    """All settings that are not given: `nano` are those of the weights that ship, `base` and `large` the published ones."""
    initial: str | None = None
    """Weights to begin with, in place of random ones: a path, `nano`, or a saved state of another training
    (OTHER.training/00001000). Their architecture is kept."""
    conv_feature_layers: str | None = None
    """Encoder layers in place of the recipe's, such as "[(128, 10, 5), (128, 8, 4)]": channels, kernel, stride."""
    conv_aggregator_layers: str | None = None
    """Context layers in place of the recipe's."""
    prediction_steps: int | None = None
    offset: int | None = None
    """Frames to the first predicted one. Default: the smallest at which all its samples are new."""
    num_negatives: int | None = None
    cross_sample_negatives: int | None = None
    """Negatives from all utterances of a device's share of the batch, besides."""
    balanced_classes: bool | None = None
    """Weigh the negatives of a prediction together as much as its positive."""
    infonce: bool | None = None
    """Softmax over the positive and its negatives, in place of a sigmoid for each."""
    updates: int | None = None
    learning_rate: float | None = None
    warm_up: int | None = None
    crop_seconds: float | None = None
    batch_seconds: float | None = None
    """Sound an update, on all devices together."""
    clip_norm: float | None = None
    held_out: float = 0.04
    """Share of the sound that is not trained on and scored at every look: whole speakers where they are known, else files."""
    look_every: int = 500
    """Updates between two looks at the held-out speech."""
    save_every: int = 500
    """Updates between two saved states: what a kill can lose."""
    seed: int = 0
    precision: wav2vec.Precision = "float32"
    """Of the products: `bfloat16` for speed on GPU and TPU; norms and Adam stay in float32."""
    dtype: Literal["float32", "float16"] = "float32"
    """Of the weights on disk."""
    notes: Path | None = None
    """Markdown that the model card takes in: licences of the recordings, known limits."""
    jobs: int = 0
    """Threads that decode; 0: one a core."""
    memory: float = 4.0
    """GiB in which decoded recordings are kept from one epoch to the next."""
    cache: Annotated[Path, tyro.conf.arg(help_behavior_hint="(default: the user's cache folder)")] = user_cache_path("jaxser")
    """Where digests of the recordings are remembered."""
    coordinator: hosts.Coordinator = None
    processes: hosts.Processes = None
    process: hosts.Process = None


def main(config: Config) -> None:
    """The whole command. The model card goes to stdout, everything else to stderr."""
    check(config)
    with ExitStack() as claims:
        # Only what comes before the updates: in one, who fails would wait here for hosts that wait for it there.
        with hosts.joined(config):
            work = prepare(config, claims)
        if work is not None:
            course, params, note = work
            state, note = pretraining.resume(course, course.learner.start(params), note)
            state, note = pretraining.go_on(course, state, note, config.look_every, config.save_every)
            params = jax.tree.map(np.asarray, state.params)
            pretraining.make_room(config.out, params)
            wav2vec.save(config.out, course.recipe.architecture, params, note, config.dtype)
    card = hosts.of_first(lambda: finish(config.out))  # to another, who has just looked, the name may still be free
    if hosts.first():
        print(card)


def prepare(config: Config, claims: ExitStack) -> tuple[Course, dict[str, Any], dict[str, Any]] | None:
    """The training, the parameters it begins with and its note, or None where the weights are there already.

    The folder of states is claimed for this command. Raises WorkError where another has it.
    """
    demand_accelerator(config)
    recipe, params = resolve(config)
    shortest = contrastive.shortest(recipe.architecture, recipe.objective)
    found = recordings.find(config.audio, shortest, config.jobs or os.cpu_count() or 1)
    train, held, held_names = recordings.hold_out(found.recordings, config.held_out, config.seed)
    sizes = (round(seconds * audio.SAMPLE_RATE) for seconds in (recipe.crop_seconds, recipe.batch_seconds))
    plan = Plan(train, *sizes, config.seed, jax.device_count())
    demand_enough(plan, shortest)
    mine = settings(config, recipe, params, found.recordings)
    if finished(config.out, mine):
        return None
    hosts.of_first(lambda: claim(config.out, claims))
    if finished(config.out, mine):
        return None  # whoever had the claim has just come to its end
    say(f"{recordings.hours(train):.2f} h to train on, {plan.updates_an_epoch():,} updates an epoch; held out: {held_names}")
    pretraining.begin(config.out)
    note = {
        "settings": mine,
        "sources": [cards.source_of(i, path, found.recordings) for i, path in enumerate(config.audio)],
        "train_hours": round(recordings.hours(train), 4),
        "held_out": f"{held_names}, {recordings.hours(held):.2f} h",
        "left_out": dict(found.left_out),
        "updates_an_epoch": plan.updates_an_epoch(),
        "machine": machine(),
        "versions": protocol.versions(),
        "notes": _notes(config),
        "updates": 0,
        "hours_heard": 0.0,
        "seconds": 0.0,
        "curve": [],
        "since": [],
    }
    learner = make_learner(recipe, config.seed, config.precision)
    reading = Reading(config.jobs, config.memory, recipe.gain)
    course = Course(learner, plan, dataclasses.replace(plan, recordings=held), reading, recipe, config.out)
    return course, params or first_params(recipe, config.seed), note


def finished(out: str, mine: Mapping[str, Any]) -> bool:
    """Whether the weights of these settings are there. Raises CallError where others are."""
    if not hosts.of_first(lambda: checkpoint.is_there(out)):
        return False
    if differing := differences(checkpoint.about(out, wav2vec.KIND).get("settings", {}), mine):
        raise CallError(f"{out} holds other weights ({differing}): give another --out, or delete it")
    return True


def claim(out: str, claims: ExitStack) -> None:
    """Keep the folder of states for this process until `claims` closes. A remote disk knows no locks: there it does nothing."""
    folder = pretraining.under_way(out)
    if "://" not in str(folder):
        claims.enter_context(claimed(Path(folder)))


def check(config: Config) -> None:
    """Raise CallError for flags that make no sense."""
    least = {"prediction_steps": 1, "offset": 1, "num_negatives": 1, "cross_sample_negatives": 0, "updates": 1, "warm_up": 0}
    least |= {"look_every": 1, "save_every": 1, "seed": 0, "jobs": 0, "memory": 0, "clip_norm": 0, "held_out": 0}
    demand_at_least(config, least)
    for name in ("learning_rate", "crop_seconds", "batch_seconds"):
        value = getattr(config, name)
        if value is not None and not 0 < value < float("inf"):
            raise CallError(f"{_flag(name)} {value:g}: above 0")
    if config.held_out >= 1:
        raise CallError(f"--held-out {config.held_out:g}: a share below 1")
    if config.seed >= 2**31:
        raise CallError(f"--seed {config.seed}: below {2**31}")
    if config.out in wav2vec.SHIPPED_NAMES:
        raise CallError(f"--out {config.out}: that is the name of weights that ship; give a path, such as ./{config.out}")
    _notes(config)
    hosts.check(config)


def _notes(config: Config) -> str:
    if config.notes is None:
        return ""
    try:
        return config.notes.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CallError(f"--notes {config.notes}: {getattr(error, 'strerror', None) or 'not a text in UTF-8'}") from None


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def demand_accelerator(config: Config) -> None:
    """Raise CallError for bfloat16 on a CPU."""
    if config.precision == "bfloat16" and jax.default_backend() == "cpu":
        raise CallError("--precision bfloat16 is for GPU and TPU: on a CPU it is slower than float32 and less exact")


def resolve(config: Config) -> tuple[Recipe, dict[str, Any] | None]:
    """Every setting of the training, and the parameters it begins with (None: random ones)."""

    def changed(record: Any, **more: Any) -> Any:
        given = {field.name: getattr(config, field.name, None) for field in dataclasses.fields(record)} | more
        return dataclasses.replace(record, **{name: value for name, value in given.items() if value is not None})

    recipe, params = changed(RECIPES[config.recipe]), None
    if recipe.warm_up >= recipe.updates:
        raise CallError(f"--warm-up {recipe.warm_up}: fewer than the {recipe.updates} updates there are")
    layers = {name: parse_layers(name, getattr(config, name)) for name in ("conv_feature_layers", "conv_aggregator_layers")}
    layers = {name: value for name, value in layers.items() if value is not None}
    architecture = Architecture.from_json(recipe.architecture.to_json() | layers)
    if config.initial is not None:
        if layers:
            raise CallError(f"{_flag(next(iter(layers)))} does not go with --initial, whose layers are kept")
        architecture, params = pretraining.initial(config.initial)
    offset = contrastive.automatic_offset(architecture)
    objective = changed(dataclasses.replace(recipe.objective, offset=offset))
    if objective.balanced_classes and objective.infonce:
        raise CallError("--balanced-classes True changes nothing with infonce: add --infonce False")
    if params is not None:
        steps = len(params[wav2vec.PREDICTIONS]["kernel"]) if wav2vec.PREDICTIONS in params else 0
        if steps != objective.prediction_steps:
            raise CallError(
                f"--initial {config.initial} predicts {steps} steps and not {objective.prediction_steps}: --prediction-steps"
            )
    return dataclasses.replace(recipe, architecture=architecture, objective=objective), params


def first_params(recipe: Recipe, seed: int) -> dict[str, Any]:
    """A network and its prediction head before any training."""
    head = contrastive.random_predictions(recipe.architecture, recipe.objective, seed)
    return {**wav2vec.random_params(recipe.architecture, seed), wav2vec.PREDICTIONS: head}


def demand_enough(plan: Plan, shortest: int) -> None:
    """Raise CallError where recordings do not fill one batch, or a crop is too short to predict anything."""
    if plan.lengths()[-1] < shortest:
        least = shortest / crops.LENGTHS[-1] / audio.SAMPLE_RATE
        raise CallError(
            f"crops of {plan.crop / audio.SAMPLE_RATE:g} s are too short for these predictions: --crop-seconds {least:.2f}"
        )
    if plan.batch < plan.crop * plan.devices:
        least = plan.crop * plan.devices / audio.SAMPLE_RATE
        raise CallError(
            f"--batch-seconds {plan.batch / audio.SAMPLE_RATE:g} is less than one crop for each of {plan.devices} device(s): "
            f"--batch-seconds {least:g}, or shorter --crop-seconds"
        )
    rows, there = plan.rows(plan.crop), sum(max(1, r.samples // plan.crop) for r in plan.recordings)
    if there < rows:
        raise CallError(
            f"the recordings to train on give {there} crops of at most {plan.crop / audio.SAMPLE_RATE:g} s, fewer than a batch "
            f"of {rows}: lower --batch-seconds (now {plan.batch / audio.SAMPLE_RATE:g}), or give more --audio"
        )


def settings(config: Config, recipe: Recipe, params: Mapping[str, Any] | None, found: Sequence[Recording]) -> dict[str, Any]:
    """Everything that fixes the weights, as plain data: the recordings by content and order, wherever they lie.

    Raises WorkError for one that cannot be read now.
    """
    contents = hosts.after_first(lambda: digests((r.path for r in found), config.cache / "digests.json"))
    if unread := [r.path for r in found if r.path not in contents]:
        raise WorkError(f"{unread[0]} cannot be read now: run again")
    listed = [f"{contents[r.path]} {r.samples} {r.speaker}" for r in found]
    values = {
        "recipe": dataclasses.asdict(recipe),
        "recordings": text_digest("\n".join(listed)),
        "held_out": config.held_out,
        "seed": config.seed,
        "devices": jax.device_count(),
        "precision": config.precision,
        "dtype": config.dtype,
        "initial": checkpoint.tree_digest(params) if params else None,
    }
    return checkpoint.plain(values)


def finish(out: str) -> str:
    """The model card, once it is written beside the weights and the states are let go of. Does no harm twice."""
    card = cards.pretraining(checkpoint.about(out, wav2vec.KIND))
    (checkpoint.absolute(out) / cards.FILE).write_bytes(card.encode(errors="backslashreplace"))
    pretraining.forget(out)
    return card


def machine() -> str:
    """What a training runs on, in words."""
    kind = jax.devices()[0].device_kind
    joined = f"{hosts.count()} hosts, " * (hosts.count() > 1)
    return f"{joined}{jax.device_count()} x {kind}, {devices.processor()}, {os.cpu_count()} cores"


if __name__ == "__main__":
    run_command("jaxser.pretrain", Config, main)
