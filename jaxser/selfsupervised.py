"""Self-supervised training of wav2vec as pure functions of a state, a batch and a key, compiled over a mesh of devices.

The batch is shared out among all devices of all hosts and the parameters lie whole on each. Gradients are sums over
the predictions of the whole batch divided by their number, as fairseq has it: how the batch is shared out changes
no more than rounding (and which utterances cross-sample negatives come from).
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, Key

from jaxser import contrastive
from jaxser.contrastive import Objective, Sums
from jaxser.crops import Read
from jaxser.network import Wav2Vec
from jaxser.recipes import Recipe
from jaxser.wav2vec import PREDICTIONS, Precision

FIRST_RATE = 1e-4
"""Where the warm-up begins, as a share of the highest learning rate: near fairseq's 1e-7 of 5e-3."""


class State(NamedTuple):
    """Where a training stands: parameters with the prediction head among them, Adam's moments, updates done."""

    params: Any
    optimiser: Any
    step: Any


class Metrics(NamedTuple):
    """Of one update: the mean loss of a prediction, the share of them that were right, the gradient's norm before clipping."""

    loss: Any
    accuracy: Any
    norm: Any


class Learner(NamedTuple):
    """What `make_learner` compiled."""

    mesh: Mesh
    start: Callable[[Mapping[str, Any]], State]
    """Parameters -> the state before the first update."""
    place: Callable[[State], State]
    """A state from anywhere, laid on every device."""
    update: Callable[[State, Read], tuple[State, Metrics]]
    """One update. A batch without any prediction changes nothing but the count. The state that goes in is used up."""
    score: Callable[[State, Read, int], Sums]
    """Sums of a held-out batch; its number fixes its negatives. Every call with one batch gives one answer."""


def make_schedule(recipe: Recipe) -> optax.Schedule:
    """The learning rate at each update: a linear warm-up, then half a cosine down to the last one."""
    return optax.warmup_cosine_decay_schedule(
        FIRST_RATE * recipe.learning_rate, recipe.learning_rate, recipe.warm_up, recipe.updates, recipe.last_learning_rate
    )


def make_optimiser(recipe: Recipe) -> optax.GradientTransformation:
    """Adam at the recipe's rate, on gradients clipped by their norm over all parameters."""
    clip = optax.clip_by_global_norm(recipe.clip_norm) if recipe.clip_norm else optax.identity()
    return optax.chain(clip, optax.adam(make_schedule(recipe)))


def batch_sums(
    model: Wav2Vec,
    objective: Objective,
    params: Mapping[str, Any],
    waveforms: Float[Array, "b s"],
    lengths: Int[Array, " b"],
    negatives_of: Callable[[Int[Array, " b"], int], Int[Array, "b t n"]],
) -> Sums:
    """The objective of a batch. `negatives_of(frames, width)` draws, or states, what stands against each frame."""
    features = {name: value for name, value in params.items() if name != PREDICTIONS}
    z, c, frames = model.apply({"params": features}, waveforms, lengths)
    negatives = negatives_of(frames, z.shape[1])
    return contrastive.sums(params[PREDICTIONS], z.astype(model.dtype), c.astype(model.dtype), frames, negatives, objective)


def make_learner(
    recipe: Recipe, seed: int, precision: Precision = "float32", devices: Sequence[jax.Device] | None = None
) -> Learner:
    """Compile training and scoring over `devices`, by default all devices of all hosts."""
    mesh = Mesh(np.array(devices or jax.devices()), ("batch",))
    model, objective = Wav2Vec(recipe.architecture, jnp.dtype(precision)), recipe.objective
    optimiser = make_optimiser(recipe)
    everywhere, shared = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("batch"))

    def sums_of(params: Any, waveforms: Array, lengths: Array, rows: Array, key: Key[Array, ""]) -> Sums:
        def negatives_of(frames: Array, width: int) -> Array:
            return contrastive.draw_negatives(key, rows, frames, width, objective)

        return batch_sums(model, objective, params, waveforms, lengths, negatives_of)

    def gradients_on_each(params: Any, *batch: Array) -> tuple[Any, Sums]:
        def loss_of(params: Any) -> tuple[Array, Sums]:
            sums = sums_of(params, *batch)
            return sums.loss, sums

        gradients, sums = jax.grad(loss_of, has_aux=True)(params)
        return lax.psum((gradients, sums), "batch")

    def sums_on_each(params: Any, *batch: Array) -> Sums:
        return lax.psum(sums_of(params, *batch), "batch")

    def over_devices(one: Callable[..., Any]) -> Callable[..., Any]:
        alone, share = PartitionSpec(), PartitionSpec("batch")
        specs = (alone, share, share, share, alone)
        return jax.shard_map(one, mesh=mesh, in_specs=specs, out_specs=alone, check_vma=False)

    @partial(jax.jit, donate_argnums=0)
    def update(state: State, waveforms: Array, lengths: Array) -> tuple[State, Metrics]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        rows = jnp.arange(len(lengths))
        gradients, sums = over_devices(gradients_on_each)(state.params, waveforms, lengths, rows, key)
        count = jnp.maximum(sums.positives, 1)
        gradients = jax.tree.map(lambda leaf: leaf / count, gradients)
        changes, moments = optimiser.update(gradients, state.optimiser, state.params)
        new = optax.apply_updates(state.params, changes), moments
        params, moments = jax.tree.map(
            lambda new, old: jnp.where(sums.positives > 0, new, old), new, (state.params, state.optimiser)
        )
        metrics = Metrics(sums.loss / count, sums.correct / count, optax.tree.norm(gradients))
        return State(params, moments, state.step + 1), metrics

    @jax.jit
    def score(params: Any, waveforms: Array, lengths: Array, number: Array) -> Sums:
        # Held-out batches have negatives of their own, the same at every look.
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), 2**31 - 1), number)
        return over_devices(sums_on_each)(params, waveforms, lengths, jnp.arange(len(lengths)), key)

    def ended(found: Any) -> Any:
        # One program at a time on a CPU: its devices share a few threads, and where those of one program wait for its sum while
        # those of the next wait for theirs, both wait for ever (XLA ends the process after 40 s).
        return jax.block_until_ready(found) if mesh.devices.flat[0].platform == "cpu" else found

    def laid_out(read: Read) -> tuple[Array, Array]:
        return tuple(jax.make_array_from_process_local_data(shared, array) for array in (read.waveforms, read.lengths))

    def place(state: State) -> State:
        return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(everywhere, np.asarray(leaf)), state)

    def start(params: Mapping[str, Any]) -> State:
        params = jax.tree.map(jnp.asarray, dict(params))
        return place(State(params, optimiser.init(params), np.zeros((), np.int32)))

    return Learner(
        mesh,
        start,
        place,
        lambda state, read: ended(update(state, *laid_out(read))),
        lambda state, read, number: ended(score(state.params, *laid_out(read), number)),
    )
