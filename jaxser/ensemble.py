"""All runs as one compiled program over the local devices.

`train_runs` lays the run axis over the devices and steps every run through a chunk of updates at a time, so that a plain
Python loop can draw progress, look for NaN and save states to go on from. Frames lie on every device whole, and runs index
into them; where they do not fit, each chunk takes along the rows that its batches need, read while the chunk before it trains.
Neither that nor the chunk's length nor an interruption nor the company of other runs changes a run's numbers: with one run at
a time on a device not a bit of them, with several at once (`parallel`) no more than rounding.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Float32, Int32

from jaxser import devices, states, streams, train
from jaxser.errors import WorkError
from jaxser.folds import batches
from jaxser.hosts import say
from jaxser.standards import Standard
from jaxser.store import Frames
from jaxser.train import Run

CHUNK = 250
"""Updates between two looks at the losses, and those that a line of losses.csv takes the mean of."""

LOOKS = 100
"""Of long runs, the most looks: each costs some milliseconds, so more updates then lie between two of them."""

ROOMS = 16
"""Into how many steps the padded size of a batch is cut for a head that computes no padding. Each that occurs is compiled, in
about half a second."""

SMALL = 256
"""Frames of a padded batch up to which that does not pay."""


@dataclass(frozen=True)
class Trained:
    """What came out, run by run: parameters (leading axis r), logits f32[m, c] in the order of `Run.test`, losses f32[updates].

    `devices` and `parallel` say how the runs were laid out.
    """

    params: Any
    standards: tuple[Standard, ...]
    logits: list[np.ndarray]
    losses: list[np.ndarray]
    devices: int
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
    chunk: int = CHUNK,
    progress: Callable[[int, float], None] = lambda updates, loss: None,
    keep: states.Keep | None = None,
) -> Trained:
    """Train every run and predict its test rows, all in one program over the local devices.

    `standards[r]` has one Standard for each of `inputs`. `parallel` runs at once on each device; 0 takes 1 on a CPU, where more
    gain nothing, and as many as memory holds elsewhere. `memory`: GiB for frames on each device; 0 takes what there is.
    `chunk`: the fewest updates between two looks at the losses. At each look `progress` hears of updates done in all runs and
    their mean loss. `keep`: where states are saved on the way and found again. A run whose loss is not finite goes on with the
    others, and `Trained.diverged` tells. Raises WorkError where that becomes of all of them, and CallError where `memory` does
    not hold a batch.
    """
    # Two devices at the least, though one stays idle: XLA compiles for one alone in another way, and other bits come out.
    mesh = Mesh(np.array(jax.local_devices()[: max(2, len(runs))]), ("runs",))
    rooms = rooms_of(inputs[0], runs, batch_size) if hasattr(model, "room") else ()
    limit = memory * 2**30 or devices.memory_for_frames(mesh.devices.flat[0])
    work = Work(model, tx, inputs, labels, batch_size, chunk, mesh, parallel, rooms)
    if sum(frames.x.nbytes for frames in inputs) <= limit:
        resident = replace(work, inputs=tuple(Frames(np.asarray(f.x), np.asarray(f.mask)) for f in inputs))
        return _train_group(resident, runs, standards, progress, keep)
    room = streams.rows_of_a_table(inputs, limit, batch_size)
    parallel = parallel or (1 if mesh.devices.flat[0].platform == "cpu" else max(1, room // (8 * batch_size)))
    parallel = min(parallel, room // max(batch_size, train.PREDICT_BATCH), -(-len(runs) // mesh.size))
    work = replace(work, parallel=parallel, table=room)
    together = parallel * mesh.size
    groups = [slice(first, first + together) for first in range(0, len(runs), together)]
    parts = [keep and keep.part(str(number), at_end=True) for number in range(len(groups))]
    return _joined(
        [_train_group(work, runs[some], standards[some], progress, mine) for some, mine in zip(groups, parts, strict=True)]
    )


@dataclass(frozen=True)
class Work:
    """What all runs of a program share."""

    model: nn.Module
    tx: optax.GradientTransformation
    inputs: tuple[Frames, ...]
    labels: np.ndarray
    batch_size: int
    chunk: int
    mesh: Mesh
    parallel: int
    rooms: tuple[int, ...]
    table: int = 0
    """Rows of frames that a device holds at a time; 0: all, and they stay."""
    compiled: dict[Any, Callable[..., Any]] = field(default_factory=dict)
    """Programs by what they do, for one group of runs after the other."""

    def program(self, name: str, one: Callable[..., Any], parallel: int) -> Callable[..., Any]:
        """`one` over all runs of a group; compiled for the first of them."""
        if (name, parallel) not in self.compiled:
            self.compiled[name, parallel] = over_runs(one, self.mesh, parallel, apart=bool(self.table))
        return self.compiled[name, parallel]


def _train_group(
    work: Work,
    runs: Sequence[Run],
    standards: Sequence[tuple[Standard, ...]],
    progress: Callable[[int, float], None],
    keep: states.Keep | None,
) -> Trained:
    """Train and predict some runs together. Where frames do not stay on the devices, as many as one table is cut for."""
    mesh, model, count = work.mesh, work.model, len(runs)
    each = NamedSharding(mesh, P("runs"))
    order = devices.in_blocks(count, mesh.size)  # what only fills up a device's block has an empty plan
    filled, places = len(order), [order.index(run) for run in range(count)]

    def stacked(values):
        values = [values[run or 0] for run in order]
        return jax.device_put(jax.tree.map(lambda *leaves: np.stack(leaves), *values), each)

    resident = () if work.table else jax.device_put((work.inputs, work.labels), NamedSharding(mesh, P()))
    own = stacked(list(standards))
    keys = [train.run_key(runs[run or 0].seed, runs[run or 0].fold, runs[run or 0].train_size) for run in order]
    longest = max(r.updates for r in runs)
    steps = updates_a_look(longest, work.chunk)
    if work.table:
        steps = min(steps, work.table // (filled // mesh.size * work.batch_size))

    def plan_from(first: int) -> np.ndarray:
        plan = np.full((filled, steps, work.batch_size), -1, np.int32)
        for place, r in zip(places, runs, strict=True):
            stop = min(r.updates, first + steps)
            if stop > first:
                plan[place, : stop - first] = batches(r.train, work.batch_size, first, stop, r.seed, r.fold, r.train_size)
        return plan

    def placed(rows: np.ndarray) -> tuple[Any, jax.Array]:
        # The frames and labels that these rows need, and where the rows are in them.
        if not work.table:
            return resident, jax.device_put(rows, each)
        shared, rows = streams.table_of(work.inputs, work.labels, rows, mesh.size)
        return jax.device_put((shared, rows), each)

    def update(inputs, labels, standards, plan, state):
        return train.advance(model, work.tx, inputs, labels, standards, state, plan, rooms)

    first = tuple(Frames(np.asarray(f.x[np.arange(1)]), np.asarray(f.mask[:1])) for f in work.inputs)
    state = over_runs(partial(train.start, model, work.tx), mesh)((first,), (jax.device_put(jnp.stack(keys), each),))
    keep = keep and keep.of(runs=[[r.seed, r.fold, r.train_size, r.updates] for r in runs], parallel=work.parallel)
    done, parallel, losses, shared, plan = 0, work.parallel, [], None, None
    if before := states.latest(keep):
        arrays, note = before
        done, parallel, losses = note["updates"], note["parallel"], [arrays.pop("losses")]
        state = _gone_on(state, arrays, order, each)
        say(f"going on after {done:,} of {longest:,} updates")
        progress(int(np.isfinite(losses[0]).sum()), float("nan"))
    # Reads ahead while the devices compute, and saves.
    with ThreadPoolExecutor(1, thread_name_prefix="batches") as reader, states.saving(keep) as save:
        ahead = reader.submit(lambda: placed(plan_from(done)))
        rooms = work.rooms
        if not parallel:
            rooms = rooms[-1:]
            shared, plan = ahead.result()
            parallel = _parallel_that_fits(update, mesh, shared, (own, plan), (state,))
        parallel = min(parallel, filled // mesh.size)
        # Several runs at once would compute every room and keep one.
        rooms = work.rooms if parallel == 1 else work.rooms[-1:]
        update_all = work.program("update", update, parallel)
        while done < longest:
            shared, plan = ahead.result()
            if done + steps < longest:
                ahead = reader.submit(lambda start: placed(plan_from(start)), done + steps)
            state, some = update_all(shared, (own, plan), (state,))
            losses.append(np.asarray(some)[places])
            _look_for_nan(losses, runs, done)
            finite = np.isfinite(losses[-1]).sum()
            progress(int(finite), float(np.nanmean(losses[-1])) if finite else np.nan)
            done += steps
            save(
                done, partial(_to_keep, state, places, losses), {"updates": done, "parallel": parallel, "done": done >= longest}
            )

    def predict(inputs, labels, standards, rows, params):
        return train.predict(model, inputs, standards, params, rows)

    width = max(len(r.test) for r in runs)
    batch = train.PREDICT_BATCH
    step = min(work.table // (filled // mesh.size) // batch, -(-width // batch)) * batch if work.table else width
    width = -(-width // step) * step
    test = np.full((filled, width), -1, np.int32)
    for place, r in zip(places, runs, strict=True):
        test[place, : len(r.test)] = r.test
    predict_all = work.program("predict", predict, parallel)
    del ahead, shared, plan  # of tables there is room for two, and prediction makes its own
    found = []
    for start in range(0, width, step):
        shared, rows = placed(test[:, start : start + step])
        found.append(np.asarray(predict_all(shared, (own, rows, state.params))))
    logits, every = np.concatenate(found, 1)[places], np.concatenate(losses, 1)
    return Trained(
        params=jax.tree.map(lambda leaf: np.asarray(leaf)[places], state.params),
        standards=jax.tree.map(lambda leaf: np.asarray(leaf)[places], own),
        logits=[logits[i, : len(r.test)] for i, r in enumerate(runs)],
        losses=[every[i, : r.updates] for i, r in enumerate(runs)],
        devices=min(mesh.size, count),
        parallel=parallel,
    )


def _joined(groups: Sequence[Trained]) -> Trained:
    each = ((one.params, one.standards) for one in groups)
    params, standards = jax.tree.map(lambda *leaves: np.concatenate(leaves), *each)
    logits, losses = [x for one in groups for x in one.logits], [x for one in groups for x in one.losses]
    return replace(groups[0], params=params, standards=standards, logits=logits, losses=losses)


def updates_a_look(longest: int, least: int = CHUNK) -> int:
    """Updates between two looks, where the longest run has so many: equal chunks compile once and waste next to nothing."""
    return -(-longest // -(-longest // max(least, -(-longest // LOOKS))))


def over_runs(one: Callable[..., Any], mesh: Mesh, parallel: int = 1, apart: bool = False) -> Callable[..., Any]:
    """`one(*shared, *own, *carried)` for every run, as a function of these three tuples.

    Shared arguments lie whole on every device (with `apart`, each device has its own along their leading axis); those of the
    two others are split along their leading run axis, and the buffers of the last are given up for what comes out. Each
    device goes through its share `parallel` at a time. One at a time is a loop over runs, whose body never sees how many there
    are: a run alone has the same bits.
    """

    def on_a_device(shared, own, carried):
        shared = jax.tree.map(lambda leaf: leaf[0], shared) if apart else shared
        batch_size = None if parallel == 1 else parallel
        return jax.lax.map(lambda mine: one(*shared, *mine[0], *mine[1]), (own, carried), batch_size=batch_size)

    specs = (P("runs") if apart else P(), P("runs"), P("runs"))
    compiled = jax.jit(
        jax.shard_map(on_a_device, mesh=mesh, in_specs=specs, out_specs=P("runs"), check_vma=False), donate_argnums=2
    )
    return lambda shared, own, carried=(): compiled(shared, own, carried)


def rooms_of(frames: Frames, runs: Sequence[Run], batch_size: int) -> tuple[int, ...]:
    """For a head that computes no padding: how many frames to make room for, so that each batch of these runs finds one that
    fits, ascending; none for small batches. All are whole steps of 1/ROOMS of a batch's padded size, whichever runs there
    are."""
    if batch_size * frames.mask.shape[1] <= SMALL:
        return ()
    counts, unit = np.asarray(frames.mask).sum(1), -(-batch_size * frames.mask.shape[1] // ROOMS)
    needed: set[int] = set()
    for r in runs:
        for start in range(0, r.updates, 4096):
            stop = min(r.updates, start + 4096)
            rows = batches(r.train, batch_size, start, stop, r.seed, r.fold, r.train_size)
            rows = np.where(rows < 0, rows.max(1, keepdims=True), rows)  # as train.advance fills up a short batch
            needed |= set((-(-counts[rows].sum(1) // unit)).tolist())
    return tuple(unit * steps for steps in sorted(needed))


def _parallel_that_fits(one: Callable[..., Any], mesh: Mesh, shared: tuple, own: tuple, carried: tuple) -> int:
    free = devices.free_memory(mesh.devices.flat[0])
    if free is None:
        return 1
    lowered = jax.jit(lambda *all_: over_runs(one, mesh)(*all_)).lower(shared, own, carried)
    return max(1, int(0.7 * free / max(lowered.compile().memory_analysis().temp_size_in_bytes, 1)))


def _to_keep(state: train.State, places: list[int], losses: list[np.ndarray]) -> dict[str, np.ndarray]:
    # In the order of the runs, so that any number of devices can go on. Keys never change: they are made anew.
    leaves = states.named((state.params, state.optimiser, state.step))
    return {name: np.asarray(leaf)[places] for name, leaf in leaves.items()} | {"losses": np.concatenate(losses, 1)}


def _gone_on(state: train.State, arrays: dict[str, np.ndarray], order: list[int | None], each: NamedSharding) -> train.State:
    known = (state.params, state.optimiser, state.step)
    rows = [run or 0 for run in order]
    params, optimiser, step = states.restored(known, {name: leaf[rows] for name, leaf in arrays.items()})
    params, optimiser, step = jax.device_put((params, optimiser, step), each)
    return state._replace(params=params, optimiser=optimiser, step=step)


def _look_for_nan(losses: Sequence[Float32[np.ndarray, "r _"]], runs: Sequence[Run], first: int) -> None:
    # Says which runs have just lost their way. Raises WorkError where none is left.
    bad = 0
    for number, run in enumerate(runs):
        now = losses[-1][number, : max(0, run.updates - first)]
        wrong = np.flatnonzero(~np.isfinite(now))
        bad += bool(wrong.size)
        if wrong.size and (len(losses) == 1 or np.isfinite(losses[-2][number, -1])):
            say(f"{run.name}: the loss is {now[wrong[0]]} at update {first + wrong[0] + 1}; the other runs go on")
    if bad == len(runs):
        raise WorkError(f"no run has a finite loss after {first + losses[-1].shape[1]} updates: lower --learning-rate")
