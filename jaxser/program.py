"""One program for many runs: laid over the places of the devices, called for some updates at a time, asked for logits.

Frames lie on every device whole, and runs index into them; where they do not fit, each call takes along the rows that its
batches need, read while the call before it trains. Runs without a place rest in the host's memory.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Float32, Int

from jaxser import devices, streams, train
from jaxser.folds import batches
from jaxser.spread import over_runs
from jaxser.standards import Standard
from jaxser.store import Frames
from jaxser.train import Run
from jaxser.turns import FEWEST, LEAST, SECONDS, Course, Pace, seatings

Order = list[int | None]
"""The run at each place, the places of a device side by side; None where one is empty."""


@dataclass(frozen=True)
class Program:
    """What all runs share."""

    model: nn.Module
    tx: optax.GradientTransformation
    inputs: tuple[Frames, ...]
    labels: np.ndarray
    batch_size: int
    mesh: Mesh
    rooms: tuple[int, ...] = ()
    """For a head that computes no padding: see `rooms.rooms_of`."""
    table: int = 0
    """Rows of frames that a device holds at a time; 0: all, and they stay."""

    @property
    def each(self) -> NamedSharding:
        """Every device has its part of the leading axis."""
        return NamedSharding(self.mesh, P("runs"))

    @property
    def whole(self) -> NamedSharding:
        """Every device has all of it."""
        return NamedSharding(self.mesh, P())

    @cached_property
    def _updating(self) -> dict[int, Callable[..., Any]]:
        return {}

    def updating(self, parallel: int) -> Callable[..., Any]:
        """Training of all runs that have places, so many at a time on each device. Asked for again it is the same function, so
        that what was compiled to learn its memory is not compiled once more to train."""
        if parallel not in self._updating:
            self._updating[parallel] = over_runs(_update(self, parallel), self.mesh, parallel, apart=bool(self.table))
        return self._updating[parallel]

    def predicting(self, parallel: int) -> Callable[..., Any]:
        """Prediction for all runs that have places, on each device `parallel` of them at a time, or fewer where their batches
        would hold more rows than those of training: that many are known to fit."""

        def predict(inputs, labels, standards, rows, params):
            return train.predict(self.model, inputs, standards, params, rows)

        few = max(1, min(parallel, parallel * self.batch_size // train.PREDICT_BATCH))
        return over_runs(predict, self.mesh, few, apart=bool(self.table))

    def counted(self, number: int) -> jax.Array:
        """A number that all devices are told."""
        return jax.device_put(*((np.full(self.mesh.size, number), self.each) if self.table else (number, self.whole)))

    @cached_property
    def resident(self) -> tuple[Any, ...]:
        """Frames and labels on all devices, where they stay."""
        return () if self.table else devices.on_all((self.inputs, self.labels), self.mesh)

    def placed(self, rows: np.ndarray) -> tuple[Any, jax.Array]:
        """The frames and labels that these rows need, and where the rows are in them."""
        if not self.table:
            return self.resident, jax.device_put(rows, self.each)
        found, rows = streams.table_of(self.inputs, self.labels, rows, self.mesh.size)
        return jax.device_put((found, rows), self.each)

    def seated(self, tree: Any, order: Order) -> Any:
        """Of a tree with a leading axis of runs those that have places, on their devices."""
        rows = np.array([run or 0 for run in order])  # something has to lie at an empty place too
        # Leaf by leaf, so that the host's copy of one is gone before that of the next is made.
        return jax.tree.map(lambda leaf: jax.device_put(leaf[rows], self.each), tree)


@dataclass(frozen=True)
class Resting:
    """All runs in the host's memory, along the leading axis of every leaf: what changes as they train, and what does not."""

    changing: tuple[Any, Any, Any]
    """Parameters, the optimiser's state, steps."""
    keys: np.ndarray
    """The data of each run's key."""

    def taken(self, program: Program, order: Order) -> train.State:
        """The runs that have places, on their devices."""
        params, optimiser, step = self.changing
        state = program.seated(train.State(params, optimiser, self.keys, step), order)
        return state._replace(key=jax.random.wrap_key_data(state.key))

    def put_back(self, state: train.State, order: Order) -> None:
        """Bring the runs that had places up to date."""
        places = [place for place, run in enumerate(order) if run is not None]
        runs = [order[place] for place in places]
        changed = (state.params, state.optimiser, state.step)
        for mine, leaf in zip(jax.tree.leaves(self.changing), jax.tree.leaves(changed), strict=True):
            mine[runs] = np.asarray(leaf)[places]


@dataclass(frozen=True)
class Look:
    """What a call has brought."""

    losses: dict[int, Float32[np.ndarray, " updates"]]
    """Of each run that had a place, those of its updates in this call."""
    put_back: Callable[[], None]
    """Brings the resting runs up to date, with what the devices have."""


def started(program: Program, runs: Sequence[Run]) -> Resting:
    """All runs before their first update."""
    one = np.arange(1)  # frames that lie on disk are read by numbers of rows
    first = tuple(Frames(np.asarray(f.x[one]), np.asarray(f.mask[one])) for f in program.inputs)
    keys = jnp.stack([train.run_key(r.seed, r.fold, r.train_size) for r in runs])
    rows = np.minimum(np.arange(-len(runs) // program.mesh.size * -program.mesh.size), len(runs) - 1)
    start = over_runs(partial(train.start, program.model, program.tx), program.mesh)
    state = start((first,), (jax.device_put(keys[rows], program.each),))

    def brought(leaf: jax.Array) -> np.ndarray:
        here = np.array(leaf)[: len(runs)]
        leaf.delete()  # so that no more than a leaf lies there and here at a time
        return here

    changing = (state.params, state.optimiser, state.step)
    return Resting(*jax.tree.map(brought, (changing, jax.random.key_data(state.key))))


def looks(
    program: Program,
    runs: Sequence[Run],
    standards: tuple[Standard, ...],
    course: Course,
    parallel: int,
    resting: Resting,
    done: Int[np.ndarray, " r"],
    seconds: float = SECONDS,
) -> Iterator[Look]:
    """Train all runs from where they are, `done` updates behind each: call after call, with a look at each.

    A call has as many updates as take `seconds`, and as the course allows: that makes no difference to any of them.
    `standards` has a leading axis of runs. When all is done, or on `Look.put_back`, the new states are in `resting`.
    """
    update_all = program.updating(parallel)
    pace = Pace(FEWEST if np.isfinite(seconds) else course.look, seconds)
    calls = _calls(program, runs, standards, course, done, pace)
    # Reads ahead while the devices compute.
    with ThreadPoolExecutor(1, thread_name_prefix="batches") as reader:
        ahead, order, state, began = reader.submit(next, calls, None), None, None, None
        while call := ahead.result():
            ahead = reader.submit(next, calls, None)
            if call.order != order:
                if order:
                    resting.put_back(state, order)
                order, state = call.order, resting.taken(program, call.order)
            state, losses = update_all(call.shared, (call.own, call.plan), (state,))
            losses = np.asarray(losses)
            found = {run: losses[order.index(run), :updates] for run, updates in call.updates.items()}
            now = time.monotonic()
            if began and np.isfinite(seconds):  # the first call compiles
                pace.heard(max(call.updates.values()), now - began)
            yield Look(found, partial(resting.put_back, state, order))
            began = time.monotonic()
        if order:
            resting.put_back(state, order)


@dataclass(frozen=True)
class _Call:
    order: Order
    updates: dict[int, int]
    """Of each run that is trained in this call, how many."""
    own: Any
    shared: Any
    plan: jax.Array


def _calls(
    program: Program,
    runs: Sequence[Run],
    standards: tuple[Standard, ...],
    course: Course,
    done: Int[np.ndarray, " r"],
    pace: Pace,
) -> Iterator[_Call]:
    done = done.tolist()
    for order in seatings([r.updates - behind for r, behind in zip(runs, done, strict=True)], program.mesh.size, course):
        own = program.seated(standards, order)
        until = [min(r.updates, behind + course.turn) for r, behind in zip(runs, done, strict=True)]
        while some := max(until[run] - done[run] for run in order if run is not None):
            some, updates = min(some, course.look, pace.updates), {}
            plan = _nobody(program, order, course)
            for place, run in enumerate(order):
                if run is not None and (mine := min(some, until[run] - done[run])):
                    r, stop = runs[run], done[run] + mine
                    plan[place, :mine] = batches(r.train, program.batch_size, done[run], stop, r.seed, r.fold, r.train_size)
                    updates[run], done[run] = mine, stop
            shared, rows = program.placed(plan)
            yield _Call(order, updates, own, (program.counted(some), *shared), rows)


def _nobody(program: Program, order: Order, course: Course) -> np.ndarray:
    # A plan of a call, still empty. For one of a single row XLA compiles in another way, and other bits come out
    # (`streams.least_rows`).
    return np.full((len(order), max(2, course.look), program.batch_size), -1, np.int32)


def predicted(
    program: Program,
    runs: Sequence[Run],
    standards: tuple[Standard, ...],
    params: Any,
    places: int,
    parallel: int,
) -> list[Float32[np.ndarray, "m c"]]:
    """Logits of each run's test rows, for parameters with a leading axis of runs; `parallel` as they were trained."""
    predict_all = program.predicting(parallel)
    width, batch = max(len(r.test) for r in runs), train.PREDICT_BATCH
    step = min(program.table // places // batch, -(-width // batch)) * batch if program.table else width
    together, logits = places * program.mesh.size, []
    for first in range(0, len(runs), together):
        some = range(first, min(first + together, len(runs)))
        order = [*some, *[None] * (together - len(some))]
        test = np.full((together, -(-width // step) * step), -1, np.int32)
        for place, run in enumerate(some):
            test[place, : len(runs[run].test)] = runs[run].test
        own, theirs, found = program.seated(standards, order), program.seated(params, order), []
        for start in range(0, test.shape[1], step):
            frames, rows = program.placed(test[:, start : start + step])
            found.append(np.asarray(predict_all(frames, (own, rows, theirs))))
        every = np.concatenate(found, 1)
        logits += [every[place, : len(runs[run].test)] for place, run in enumerate(some)]
    return logits


def at_once(
    program: Program,
    runs: Sequence[Run],
    standards: tuple[Standard, ...],
    resting: Resting,
    parallel: int,
    course_of: Callable[[int], Course],
) -> int:
    """How many runs each device trains at once: as asked, or, where that is 0, one on a CPU and elsewhere as many as fit.
    `course_of` lays out the runs for a number of them."""
    most, device = -(-len(runs) // program.mesh.size), program.mesh.devices.flat[0]
    if program.table:
        parallel = parallel or (1 if device.platform == "cpu" else max(1, program.table // (8 * program.batch_size)))
        most = min(most, program.table // streams.least_rows(program.batch_size))
    return min(parallel, most) or _that_fit(program, runs, standards, resting, most, course_of)


def _that_fit(
    program: Program,
    runs: Sequence[Run],
    standards: tuple[Standard, ...],
    resting: Resting,
    most: int,
    course_of: Callable[[int], Course],
) -> int:
    device, parallel = program.mesh.devices.flat[0], most
    if devices.free_memory(device) is None:
        return 1
    while parallel > 1:  # nearly always all of them fit
        course = course_of(parallel)
        order = next(seatings([run.updates for run in runs], program.mesh.size, course))
        shared, plan = program.placed(_nobody(program, order, course))
        own, state = (program.seated(standards, order), plan), resting.taken(program, order)
        room = 0.7 * devices.free_memory(device)
        lowered = program.updating(parallel).lower((program.counted(LEAST), *shared), own, (state,))
        needed = lowered.compile().memory_analysis().temp_size_in_bytes
        if needed <= room:
            break
        parallel = min(parallel - 1, max(1, int(parallel * room / needed)))
    return parallel


def _update(program: Program, parallel: int) -> Callable[..., Any]:
    # Several runs at once would compute every room and keep one; and an accelerator would take a minute to compile them all, to
    # spare work that it has the units for.
    few = parallel > 1 or program.mesh.devices.flat[0].platform != "cpu"
    rooms = program.rooms[-1:] if few else program.rooms

    def update(steps, inputs, labels, standards, plan, state):
        return train.advance(program.model, program.tx, inputs, labels, standards, state, plan, rooms, steps, parallel > 1)

    return update
