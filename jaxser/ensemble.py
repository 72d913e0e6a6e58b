"""Many runs, from their rows to their logits.

`train_runs` makes one program of them over the local devices and steps all that have a place through some updates at a time, so
that a plain Python loop can draw progress, look for NaN and save states to go on from. Neither the number of updates in a call
nor places that change hands nor frames that are read as they are needed nor an interruption nor the company of other runs
changes a run's numbers: on a CPU with one run at a time on a device not a bit of them, otherwise no more than rounding.
"""

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Float32, Int32

from jaxser import devices, program, states, streams, train, turns
from jaxser.hosts import check_others, say
from jaxser.rooms import rooms_of
from jaxser.standards import Standard
from jaxser.store import Frames
from jaxser.train import Run


@dataclass(frozen=True)
class Trained:
    """What came out, run by run: parameters (leading axis r), logits f32[m, c] in the order of `Run.test`, losses f32[updates].

    `parallel` is how many each device trained at once.
    """

    params: Any
    standards: tuple[Standard, ...]
    logits: list[np.ndarray]
    losses: list[np.ndarray]
    parallel: int

    @property
    def diverged(self) -> dict[int, int]:
        """The numbers of runs of which nothing can be believed, each with its first update without a finite loss."""
        sound = [np.isfinite(loss).all() and np.isfinite(of).all() for loss, of in zip(self.losses, self.logits, strict=True)]
        return {i: _first_bad(self.losses[i]) for i in range(len(sound)) if not sound[i]}

    def of(self, some: Sequence[int]) -> "Trained":
        """What came out of some of the runs."""
        params, standards = jax.tree.map(lambda leaf: leaf[list(some)], (self.params, self.standards))
        logits, losses = ([of[i] for i in some] for of in (self.logits, self.losses))
        return replace(self, params=params, standards=standards, logits=logits, losses=losses)


def _first_bad(losses: Float32[np.ndarray, " updates"]) -> int:
    # Counted from 1; one past the last where only the logits are not finite.
    return int(np.argmin(np.isfinite([*losses, np.nan]))) + 1


def train_runs(
    model: nn.Module,
    tx: optax.GradientTransformation,
    inputs: tuple[Frames, ...],
    labels: Int32[np.ndarray, " n"],
    runs: Sequence[Run],
    standards: Sequence[tuple[Standard, ...]],
    batch_size: int = train.BATCH_SIZE,
    parallel: int = 0,
    memory: float = 0.0,
    chunk: int = 0,
    progress: Callable[[int, float], None] = lambda updates, loss: None,
    keep: states.Keep | None = None,
) -> Trained:
    """Train every run and predict its test rows, all in one program over the local devices.

    `standards[r]` has one Standard for each of `inputs`. `parallel` runs at once on each device; 0 takes 1 on a CPU, where more
    gain nothing, and as many as memory holds elsewhere. `memory`: GiB for frames on each device; 0 takes what there is.
    `chunk`: the most updates of a run between two looks at the losses, where the clock would take more. At each look
    `progress` hears of updates done in all runs and their mean loss. `keep`: where states are saved on the way and found
    again. A run whose loss is not finite goes on with the others, and `Trained.diverged` tells; where that has become of all of
    them, training ends. Raises CallError where `memory` does not hold a batch.
    """
    # Two devices at the least, though one stays idle: XLA compiles for one alone in another way, and other bits come out.
    mesh = Mesh(np.array(jax.local_devices()[: max(2, len(runs))]), ("runs",))
    rooms = rooms_of(inputs[0], runs, batch_size) if hasattr(model, "room") else ()
    limit, table, device = memory * 2**30, 0, mesh.devices.flat[0]
    if sum(frames.x.nbytes for frames in inputs) <= (limit or devices.memory_for_frames(device)):
        inputs = tuple(Frames(np.asarray(f.x), np.asarray(f.mask)) for f in inputs)
    else:
        table = streams.rows_of_a_table(inputs, limit or devices.memory_for_frames(device, apart=True), batch_size)
    of_all = program.Program(model, tx, inputs, labels, batch_size, mesh, rooms, table)
    standard = jax.tree.map(lambda *leaves: np.stack(leaves), *standards)
    resting = program.started(of_all, runs)
    lengths = [run.updates for run in runs]
    losses, done = np.full((len(runs), max(lengths)), np.nan, np.float32), np.zeros(len(runs), np.int64)

    keep = keep and keep.of(runs=[[r.seed, r.fold, r.train_size, r.updates] for r in runs], parallel=parallel)
    if before := states.latest(keep):
        arrays, note = before
        parallel, done = note["parallel"], np.array(note["updates"])
        losses[:, : done.max()] = arrays.pop("losses")
        resting = replace(resting, changing=states.restored(resting.changing, {k: np.array(v) for k, v in arrays.items()}))
        say(f"going on after {done.sum():,} of {sum(lengths):,} updates")
        progress(int(np.isfinite(losses).sum()), float("nan"))

    def course_of(parallel: int) -> turns.Course:
        places = parallel if table else turns.places_for(len(runs), mesh.size, parallel)
        fit = min(limit for limit in (chunk, table // (places * batch_size), max(lengths)) if limit)
        return turns.course_of(lengths, mesh.size, places, parallel, fit)

    parallel = program.at_once(of_all, runs, standard, resting, parallel, course_of)
    course = course_of(parallel)

    lost = {run for run, behind in enumerate(done) if not np.isfinite(losses[run, :behind]).all()}
    every = program.looks(of_all, runs, standard, course, parallel, resting, done.copy())
    with states.saving(keep) as save, closing(every):
        for look in every:
            for run, some in look.losses.items():
                losses[run, done[run] : done[run] + len(some)] = some
                done[run] += len(some)
            _look_for_nan(look, runs, done, lost)
            if len(lost) == len(runs):
                look.put_back()
                break
            now = np.concatenate(list(look.losses.values()))
            finite = int(np.isfinite(now).sum())
            progress(finite, float(np.nanmean(now)) if finite else np.nan)

            def arrays(look=look) -> dict[str, np.ndarray]:
                look.put_back()
                return _to_keep(resting, losses[:, : done.max()])

            about = {"updates": done.tolist(), "parallel": parallel, "done": bool(done.sum() == sum(lengths))}
            save(int(done.sum()), arrays, about)
            check_others()
    params = resting.changing[0]
    return Trained(
        params=params,
        standards=standard,
        logits=program.predicted(of_all, runs, standard, params, course.places, parallel),
        losses=[losses[i, :length] for i, length in enumerate(lengths)],
        parallel=parallel,
    )


def _to_keep(resting: program.Resting, losses: Float32[np.ndarray, "r updates"]) -> dict[str, np.ndarray]:
    # By runs, so that any number of devices can go on. Keys never change: they are made anew.
    return {name: leaf.copy() for name, leaf in states.named(resting.changing).items()} | {"losses": losses.copy()}


def _look_for_nan(look: program.Look, runs: Sequence[Run], done: np.ndarray, lost: set[int]) -> None:
    # Says which runs have just lost their way.
    for number, some in look.losses.items():
        wrong = np.flatnonzero(~np.isfinite(some))
        if wrong.size and number not in lost:
            update = done[number] - len(some) + wrong[0] + 1
            say(f"{runs[number].name}: the loss is {some[wrong[0]]} at update {update}; the other runs go on")
            lost.add(number)
