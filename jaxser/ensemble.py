"""All runs as one compiled program over the local devices.

`train_runs` lays the run axis over the devices and steps every run through a chunk of updates at a time, so that a plain
Python loop can draw progress and look for NaN. Frames lie on every device whole, and runs index into them; where they do not
fit, each chunk takes along the rows that its batches need, read while the chunk before it trains. Neither that nor the
chunk's length nor the company of other runs changes a run's numbers: with one run at a time on a device not a bit of them,
with several at once (`parallel`) no more than rounding.
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

from jaxser import devices, train
from jaxser.errors import CallError, WorkError
from jaxser.folds import batches
from jaxser.standards import Standard
from jaxser.store import Frames
from jaxser.train import Run

CHUNK = 250
"""Updates between two looks at the losses."""

ROOMS = 16
"""Into how many steps the padded size of a batch is cut for a head that computes no padding. Each that occurs is compiled, in
about half a second."""

KINDS = (np.float32, np.bool_)
"""Of frames and of their mask."""

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

    def part(self, start: int, stop: int) -> "Trained":
        """What came out of the runs from `start` to before `stop`."""
        params, standards = jax.tree.map(lambda leaf: leaf[start:stop], (self.params, self.standards))
        return replace(self, params=params, standards=standards, logits=self.logits[start:stop], losses=self.losses[start:stop])


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
) -> Trained:
    """Train every run and predict its test rows, all in one program over the local devices.

    `standards[r]` has one Standard for each of `inputs`. `parallel` runs at once on each device; 0 takes 1 on a CPU, where more
    gain nothing, and as many as memory holds elsewhere. `memory`: GiB for frames on each device; 0 takes what there is.
    `progress` hears of updates done in all runs and their mean loss. Raises WorkError, naming the run, where a loss is not
    finite, and CallError where `memory` does not hold a batch.
    """
    # Two devices at the least, though one stays idle: XLA compiles for one alone in another way, and other bits come out.
    mesh = Mesh(np.array(jax.local_devices()[: max(2, len(runs))]), ("runs",))
    rooms = rooms_of(inputs[0], runs, batch_size) if hasattr(model, "room") else ()
    limit = memory * 2**30 or devices.memory_for_frames(mesh.devices.flat[0])
    work = Work(model, tx, inputs, labels, batch_size, chunk, mesh, parallel, rooms)
    if sum(frames.x.nbytes for frames in inputs) <= limit:
        resident = replace(work, inputs=tuple(Frames(np.asarray(f.x), np.asarray(f.mask)) for f in inputs))
        return _train_group(resident, runs, standards, progress)
    room = _rows_of_a_table(inputs, limit, batch_size)
    parallel = parallel or (1 if mesh.devices.flat[0].platform == "cpu" else max(1, room // (8 * batch_size)))
    parallel = min(parallel, room // max(batch_size, train.PREDICT_BATCH), -(-len(runs) // mesh.size))
    work = replace(work, parallel=parallel, table=room)
    together = parallel * mesh.size
    groups = [slice(first, first + together) for first in range(0, len(runs), together)]
    return _joined([_train_group(work, runs[some], standards[some], progress) for some in groups])


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
    work: Work, runs: Sequence[Run], standards: Sequence[tuple[Standard, ...]], progress: Callable[[int, float], None]
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
    chunks = -(-longest // work.chunk)
    steps = -(-longest // chunks)  # chunks of equal length compile once and waste fewer than `chunks` empty steps
    if work.table:
        steps = min(steps, work.table // (filled // mesh.size * work.batch_size))
        chunks = -(-longest // steps)

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
        shared, rows = table_of(work.inputs, work.labels, rows, mesh.size)
        return jax.device_put((shared, rows), each)

    def update(inputs, labels, standards, plan, state):
        return train.advance(model, work.tx, inputs, labels, standards, state, plan, rooms)

    first = tuple(Frames(np.asarray(f.x[np.arange(1)]), np.asarray(f.mask[:1])) for f in work.inputs)
    state = over_runs(partial(train.start, model, work.tx), mesh)((first,), (jax.device_put(jnp.stack(keys), each),))
    losses = []
    with ThreadPoolExecutor(1, thread_name_prefix="batches") as reader:  # reads ahead while the devices compute
        ahead = reader.submit(lambda: placed(plan_from(0)))
        parallel, rooms = work.parallel, work.rooms
        if not parallel:
            rooms = rooms[-1:]
            shared, plan = ahead.result()
            parallel = _parallel_that_fits(update, mesh, shared, (own, plan), (state,))
        parallel = min(parallel, filled // mesh.size)
        # Several runs at once would compute every room and keep one.
        rooms = work.rooms if parallel == 1 else work.rooms[-1:]
        update_all = work.program("update", update, parallel)
        for number in range(chunks):
            shared, plan = ahead.result()
            if number + 1 < chunks:
                ahead = reader.submit(lambda start: placed(plan_from(start)), (number + 1) * steps)
            state, some = update_all(shared, (own, plan), (state,))
            losses.append(np.asarray(some)[places])
            _demand_finite(losses[-1], runs, number * steps)
            done = np.isfinite(losses[-1]).sum()
            progress(int(done), float(np.nanmean(losses[-1])) if done else np.nan)

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


def _rows_of_a_table(inputs: tuple[Frames, ...], limit: float, batch_size: int) -> int:
    # Two tables lie on a device: one that is trained on, and the next.
    a_row = sum(frames.x.nbytes / len(frames.x) for frames in inputs)
    room, least = int(limit / 2 / a_row), max(batch_size, train.PREDICT_BATCH)
    if room < least:
        raise CallError(
            f"frames may take {limit / 2**30:.3g} GiB on a device, and two batches of {least} utterances need "
            f"{2 * least * a_row / 2**30:.3g}: give as much with --memory"
        )
    return room


def table_of(
    inputs: tuple[Frames, ...], labels: Int32[np.ndarray, " n"], rows: Int32[np.ndarray, "r ..."], count: int
) -> tuple[tuple[tuple[Frames, ...], np.ndarray], Int32[np.ndarray, "r ..."]]:
    """The frames and labels that some rows need, and the same rows by their place among these; -1 stays.

    For each of `count` devices, which share the leading axis of `rows` out among them, a table of its own, all of one size.
    A larger row keeps the larger number.
    """
    places, size = np.empty_like(rows), min(len(labels), rows.size // count)
    empty = [[np.zeros((count, size, *of.shape[1:]), kind) for of, kind in zip(f, KINDS, strict=True)] for f in inputs]
    tables = tuple(Frames(*of) for of in empty)
    of_tables = np.zeros((count, size), labels.dtype)
    blocks = np.split(np.arange(len(rows)), count)
    for device, block in enumerate(blocks):
        mine = rows[block]
        needed = np.unique(mine[mine >= 0])
        places[block] = np.where(mine < 0, -1, np.searchsorted(needed, mine))
        of_tables[device, : len(needed)] = labels[needed]
        for table, f in zip(tables, inputs, strict=True):
            table.x[device, : len(needed)], table.mask[device, : len(needed)] = f.x[needed], f.mask[needed]
    return (tables, of_tables), places


def _parallel_that_fits(one: Callable[..., Any], mesh: Mesh, shared: tuple, own: tuple, carried: tuple) -> int:
    free = devices.free_memory(mesh.devices.flat[0])
    if free is None:
        return 1
    lowered = jax.jit(lambda *all_: over_runs(one, mesh)(*all_)).lower(shared, own, carried)
    return max(1, int(0.7 * free / max(lowered.compile().memory_analysis().temp_size_in_bytes, 1)))


def _demand_finite(losses: Float32[np.ndarray, "r steps"], runs: Sequence[Run], first: int) -> None:
    for run, row in zip(runs, losses, strict=True):
        wrong = np.flatnonzero(~np.isfinite(row[: max(0, run.updates - first)]))
        if wrong.size:
            raise WorkError(
                f"the loss of seed {run.seed}, fold {run.fold} is {row[wrong[0]]} at update {first + wrong[0] + 1}: "
                "lower --learning-rate"
            )
