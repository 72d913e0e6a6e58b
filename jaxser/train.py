"""Training as pure functions of arrays and a key, and all runs of them as one compiled program.

A run is one (seed, fold, training size). `start`, `advance` and `predict` know one run; `train_runs` lays the run axis over
all local devices and steps every run through a chunk of updates at a time, so that a plain Python loop can draw progress and
look for NaN. Neither the chunk length nor the company of other runs changes a run's numbers: with one run at a time on a
device not a bit of them, with several at once (`parallel`) no more than rounding.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Float32, Int, Int32, Key

from jaxser.errors import WorkError
from jaxser.folds import batches
from jaxser.store import Frames

BATCH_SIZE = 16
LEARNING_RATE = 1e-4
"""Both from the paper, with Adam; its betas and epsilon are the usual ones (0.9, 0.999, 1e-8)."""

CHUNK = 250
"""Updates between two looks at the losses."""

PREDICT_BATCH = 64


class Standard(NamedTuple):
    """What makes features comparable in scale: f32[d] each, from the training rows of one run and nothing else."""

    mean: Any
    scale: Any


class State(NamedTuple):
    """Where one run stands. `key` never changes; update `step` draws its dropout from both."""

    params: Any
    optimiser: Any
    key: Any
    step: Any


@dataclass(frozen=True)
class Run:
    """One training with its rows: `train` in any order, `test` in the order of the logits that come back."""

    seed: int
    fold: int
    train_size: int
    updates: int
    train: np.ndarray
    test: np.ndarray


def run_key(seed: int, fold: int, train_size: int) -> Key[Array, ""]:
    """The key of a run: from what the run is, never from its position among others."""
    key = jax.random.key(seed)
    return jax.random.fold_in(jax.random.fold_in(key, fold), train_size)


def start(model: nn.Module, tx: optax.GradientTransformation, inputs: tuple[Frames, ...], key: Key[Array, ""]) -> State:
    """A run before its first update. `inputs` only gives the shapes: its first row is looked at."""
    initial, key = jax.random.split(key)
    first = tuple(Frames(f.x[:1], f.mask[:1]) for f in inputs)
    params = model.init(initial, *first, train=False)["params"]
    return State(params, tx.init(params), key, jnp.zeros((), jnp.int32))


def advance(
    model: nn.Module,
    tx: optax.GradientTransformation,
    inputs: tuple[Frames, ...],
    labels: Int32[Array, " n"],
    standards: tuple[Standard, ...],
    state: State,
    plan: Int32[Array, "steps b"],
) -> tuple[State, Float[Array, " steps"]]:
    """Train one run through `plan`, rows of `inputs` by number; -1 fills a short batch.

    The loss of a step is the mean cross-entropy of the rows that are there. A wholly empty step has the loss NaN and changes
    nothing, neither the parameters nor Adam's moments, so that runs of different lengths share one program.
    """

    def loss_of(params, rows, key):
        logits = model.apply({"params": params}, *_take(inputs, standards, rows), train=True, rngs={"dropout": key})
        present = rows >= 0
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels[jnp.maximum(rows, 0)])
        return jnp.where(present, losses, 0).sum() / jnp.maximum(present.sum(), 1)

    def step(state, rows):
        loss, gradients = jax.value_and_grad(loss_of)(state.params, rows, jax.random.fold_in(state.key, state.step))
        updates, optimiser = tx.update(gradients, state.optimiser, state.params)
        params = optax.apply_updates(state.params, updates)
        filled = (rows >= 0).any()
        params, optimiser, number = jax.tree.map(
            lambda new, old: jnp.where(filled, new, old),
            (params, optimiser, state.step + 1),
            (state.params, state.optimiser, state.step),
        )
        return State(params, optimiser, state.key, number), jnp.where(filled, loss, jnp.nan)

    return jax.lax.scan(step, state, plan)


def predict(
    model: nn.Module, inputs: tuple[Frames, ...], standards: tuple[Standard, ...], params: Any, rows: Int[Array, " m"]
) -> Float[Array, "m c"]:
    """Logits of the rows, without dropout; where a row is -1 they mean nothing."""
    padded = jnp.pad(rows, (0, -len(rows) % PREDICT_BATCH), constant_values=-1).reshape(-1, PREDICT_BATCH)
    logits = jax.lax.map(lambda some: model.apply({"params": params}, *_take(inputs, standards, some), train=False), padded)
    return logits.reshape(-1, logits.shape[-1])[: len(rows)]


def _take(inputs: tuple[Frames, ...], standards: tuple[Standard, ...], rows: Int[Array, " b"]) -> tuple[Frames, ...]:
    # A row that is not there becomes another one of the batch, so that no head divides by zero; the loss ignores it; not
    # just any row: even without weight, one outside the training set has no business here.
    return standardised(inputs, standards, jnp.where(rows < 0, jnp.maximum(rows.max(), 0), rows))


def standardised(inputs: tuple[Frames, ...], standards: tuple[Standard, ...], rows: Int[Any, " b"]) -> tuple[Frames, ...]:
    """Some rows as a head reads them."""
    return tuple(Frames((f.x[rows] - s.mean) / s.scale, f.mask[rows]) for f, s in zip(inputs, standards, strict=True))


class Moments(NamedTuple):
    """Per utterance and feature, over its valid frames: how many there are, their mean, their squared deviations from it."""

    count: np.ndarray
    mean: np.ndarray
    squares: np.ndarray


def moments(frames: Frames) -> Moments:
    """f64 moments of every utterance on its own, from which those of any set of training rows follow."""
    mask = np.asarray(frames.mask)[..., None]
    count = mask.sum(1, dtype=np.float64)
    x = np.asarray(frames.x)
    mean = np.stack([row[: int(k)].mean(0, dtype=np.float64) for row, (k,) in zip(x, count, strict=True)])
    squares = np.stack([((row[: int(k)] - centre) ** 2).sum(0) for row, centre, (k,) in zip(x, mean, count, strict=True)])
    return Moments(count, mean, squares)


def standardisation(of: Moments, rows: Int[np.ndarray, " k"]) -> Standard:
    """Mean and standard deviation of all frames of the given rows (Chan et al., 1979); a constant feature has scale 1."""
    count, mean, squares = of.count[rows], of.mean[rows], of.squares[rows]
    total = count.sum()
    centre = (count * mean).sum(0) / total
    variance = (squares + count * (mean - centre) ** 2).sum(0) / total
    scale = np.sqrt(variance)
    constant = scale <= 1e-6 * np.maximum(np.abs(centre), 1e-6)
    return Standard(centre.astype(np.float32), np.where(constant, 1, scale).astype(np.float32))


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
    batch_size: int = BATCH_SIZE,
    parallel: int = 0,
    chunk: int = CHUNK,
    progress: Callable[[int, float], None] = lambda updates, loss: None,
) -> Trained:
    """Train every run and predict its test rows, all in one program over the local devices.

    `standards[r]` has one Standard for each of `inputs`. `parallel` runs at once on each device; 0 takes 1 on a CPU, where more
    gain nothing, and as many as memory holds elsewhere. `progress` hears of updates done in all runs and their mean loss.
    Raises WorkError, naming the run, where a loss is not finite.
    """
    devices = jax.local_devices()[: len(runs)]
    mesh = Mesh(np.array(devices), ("runs",))
    each, everywhere = NamedSharding(mesh, P("runs")), NamedSharding(mesh, P())
    filled = -(-len(runs) // len(devices)) * len(devices)  # runs that only fill up the devices have empty plans

    def stacked(values):
        values = [*values, *[values[0]] * (filled - len(runs))]
        return jax.device_put(jax.tree.map(lambda *leaves: np.stack(leaves), *values), each)

    inputs, labels = jax.device_put((inputs, labels), everywhere)
    standards = stacked(list(standards))
    keys = jax.device_put(
        jnp.stack([run_key(r.seed, r.fold, r.train_size) for r in runs] + [jax.random.key(0)] * (filled - len(runs))),
        each,
    )
    longest = max(r.updates for r in runs)
    chunks = max(1, -(-longest // chunk))
    steps = -(-longest // chunks)  # chunks of equal length compile once and waste fewer than `chunks` empty steps

    def plan_from(first):
        plan = np.full((filled, steps, batch_size), -1, np.int32)
        for i, r in enumerate(runs):
            stop = min(r.updates, first + steps)
            if stop > first:
                plan[i, : stop - first] = batches(r.train, batch_size, first, stop, r.seed, r.fold, r.train_size)
        return jax.device_put(plan, each)

    state = over_runs(partial(start, model, tx), mesh, 1)((inputs,), (keys,))
    first_plan = plan_from(0)
    shared, own = (inputs, labels), (standards, state, first_plan)
    if not parallel:
        parallel = _parallel_that_fits(partial(advance, model, tx), mesh, shared, own)
    parallel = min(parallel, filled // len(devices))
    step_all = over_runs(partial(advance, model, tx), mesh, parallel)
    losses = []
    for number in range(chunks):
        state, some = step_all(shared, (standards, state, first_plan if number == 0 else plan_from(number * steps)))
        losses.append(np.asarray(some)[: len(runs)])
        _demand_finite(losses[-1], runs, number * steps)
        done = np.isfinite(losses[-1]).sum()
        progress(int(done), float(np.nanmean(losses[-1])) if done else np.nan)

    width = max(len(r.test) for r in runs)
    rows = stacked([np.pad(r.test.astype(np.int32), (0, width - len(r.test)), constant_values=-1) for r in runs])

    def predict_one(inputs, standards, params, rows):
        return predict(model, inputs, standards, params, rows)

    logits = np.asarray(over_runs(predict_one, mesh, parallel)((inputs,), (standards, state.params, rows)))
    every = np.concatenate(losses, 1)
    return Trained(
        params=jax.tree.map(lambda leaf: np.asarray(leaf)[: len(runs)], state.params),
        standards=jax.tree.map(lambda leaf: np.asarray(leaf)[: len(runs)], standards),
        logits=[logits[i, : len(r.test)] for i, r in enumerate(runs)],
        losses=[every[i, : r.updates] for i, r in enumerate(runs)],
        devices=len(devices),
        parallel=parallel,
    )


def over_runs(one: Callable[..., Any], mesh: Mesh, parallel: int) -> Callable[[tuple, tuple], Any]:
    """`one(*shared, *own)` for every run: shared arguments whole on every device, own ones split along their leading run axis,
    each device going through its share `parallel` at a time.

    One at a time is a loop over runs, whose body never sees how many there are: a run alone has the same bits.
    """

    def on_a_device(shared, own):
        batch_size = None if parallel == 1 else parallel
        return jax.lax.map(lambda mine: one(*shared, *mine), own, batch_size=batch_size)

    return jax.jit(jax.shard_map(on_a_device, mesh=mesh, in_specs=(P(), P("runs")), out_specs=P("runs"), check_vma=False))


def _parallel_that_fits(one: Callable[..., Any], mesh: Mesh, shared: tuple, own: tuple) -> int:
    device = mesh.devices.flat[0]
    memory = device.memory_stats() if device.platform != "cpu" else None
    if not memory or "bytes_limit" not in memory:
        return 1
    needed = over_runs(one, mesh, 1).lower(shared, own).compile().memory_analysis().temp_size_in_bytes
    free = memory["bytes_limit"] - memory["bytes_in_use"]
    return max(1, int(0.7 * free / max(needed, 1)))


def _demand_finite(losses: Float32[np.ndarray, "r steps"], runs: Sequence[Run], first: int) -> None:
    for run, row in zip(runs, losses, strict=True):
        wrong = np.flatnonzero(~np.isfinite(row[: max(0, run.updates - first)]))
        if wrong.size:
            raise WorkError(
                f"the loss of seed {run.seed}, fold {run.fold} is {row[wrong[0]]} at update {first + wrong[0] + 1}: "
                "lower --learning-rate"
            )
