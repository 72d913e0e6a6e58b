"""Training as pure functions of arrays and a key: `start`, `advance` and `predict` know one run and no other.

A run is one (seed, fold, training size). `jaxser.ensemble` makes one program of many.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Int32, Key

from jaxser.standards import Standard, standardised
from jaxser.store import Frames

BATCH_SIZE = 16
LEARNING_RATE = 1e-4
"""Both from the paper, with Adam; its betas and epsilon are the usual ones (0.9, 0.999, 1e-8)."""

PREDICT_BATCH = 64


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

    @property
    def name(self) -> str:
        """What people call it."""
        return f"seed {self.seed}, fold {self.fold}"


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
    rooms: tuple[int, ...] = (),
    steps: Int[Any, ""] | None = None,
    together: bool = False,
) -> tuple[State, Float[Array, " steps"]]:
    """Train one run through `plan`, rows of `inputs` by number; -1 fills a short batch.

    The loss of a step is the mean cross-entropy of the rows that are there. A wholly empty step has the loss NaN and changes
    nothing, neither the parameters nor Adam's moments, so that runs of different lengths share one program; an empty plan
    costs nothing where runs go one at a time. With `steps`, only so many of the plan are gone through; those after them have
    the loss NaN too. `together` is for several runs under one `vmap`, which would make of the look at the plan a copy of all
    frames for each run.

    `rooms`, ascending, are for a head that computes no padding: each batch takes the first one that its frames fit in. Which
    one that is depends on the batch alone, so the company of other runs and batches changes no bit.
    """

    def loss_of(model, params, rows, key):
        logits = model.apply({"params": params}, *_take(inputs, standards, rows), train=True, rngs={"dropout": key})
        present = rows >= 0
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels[jnp.maximum(rows, 0)])
        return jnp.where(present, losses, 0).sum() / jnp.maximum(present.sum(), 1)

    heads = [model.clone(room=room) for room in rooms] or [model]
    graded = [partial(jax.value_and_grad(loss_of, argnums=1), head) for head in heads]

    def loss_and_gradients(params, rows, key):
        if len(graded) == 1:
            return graded[0](params, rows, key)
        frames = inputs[0].mask[_filled(rows)].sum()
        return jax.lax.switch(jnp.searchsorted(jnp.array(rooms), frames), graded, params, rows, key)

    def step(state, rows):
        loss, gradients = loss_and_gradients(state.params, rows, jax.random.fold_in(state.key, state.step))
        updates, optimiser = tx.update(gradients, state.optimiser, state.params)
        params = optax.apply_updates(state.params, updates)
        filled = (rows >= 0).any()
        params, optimiser, number = jax.tree.map(
            lambda new, old: jnp.where(filled, new, old),
            (params, optimiser, state.step + 1),
            (state.params, state.optimiser, state.step),
        )
        return State(params, optimiser, state.key, number), jnp.where(filled, loss, jnp.nan)

    def nothing(state, plan):
        return state, jnp.full(len(plan), jnp.nan)

    def some(state, plan):
        def one(number, carried):
            state, loss = step(carried[0], plan[number])
            return state, carried[1].at[number].set(loss)

        return jax.lax.fori_loop(0, len(plan) if steps is None else steps, one, nothing(state, plan))

    return some(state, plan) if together else jax.lax.cond((plan >= 0).any(), some, nothing, state, plan)


def predict(
    model: nn.Module, inputs: tuple[Frames, ...], standards: tuple[Standard, ...], params: Any, rows: Int[Array, " m"]
) -> Float[Array, "m c"]:
    """Logits of the rows, without dropout; where a row is -1 they mean nothing."""
    padded = jnp.pad(rows, (0, -len(rows) % PREDICT_BATCH), constant_values=-1).reshape(-1, PREDICT_BATCH)
    logits = jax.lax.map(lambda some: model.apply({"params": params}, *_take(inputs, standards, some), train=False), padded)
    return logits.reshape(-1, logits.shape[-1])[: len(rows)]


def _take(inputs: tuple[Frames, ...], standards: tuple[Standard, ...], rows: Int[Array, " b"]) -> tuple[Frames, ...]:
    return standardised(inputs, standards, _filled(rows))


def _filled(rows: Int[Any, " b"]) -> Int[Any, " b"]:
    # A row that is not there becomes another one of the batch, so that no head divides by zero; the loss ignores it; not
    # just any row: even without weight, one outside the training set has no business here.
    return jnp.where(rows < 0, jnp.maximum(rows.max(), 0), rows)
