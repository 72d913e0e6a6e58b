"""wav2vec's training objective (Schneider et al., 2019, section 2.2): tell the frames to come from frames of elsewhere.

From each context vector c_t an affine map a step ahead predicts the encoder's z_{t + offset + step}. Its product with
that frame, the positive, is to be high, and with frames drawn from the same utterance, the negatives, low: binary cross-entropy
over all of them, summed, and divided by the number of positives.

Source: fairseq 0.12.2, Wav2VecPredictionsModel and Wav2vecCriterion. Two departures, both on purpose. Batches are
ragged: only valid frames predict, are predicted or are drawn. And a negative is never the frame it stands against: fairseq
means to do that too, but lays its draws out in another order than it made them, so that each excludes some other frame.
Padding negatives and own ones apart, the same draws give the same loss and gradients.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key

from jaxser.architecture import Architecture
from jaxser.network import valid


@dataclass(frozen=True)
class Objective:
    """fairseq's options of the objective, under its names. The defaults are those of its published command.

    A small network that trains for minutes learns much sooner with `infonce` (benchmarks/SCORES.md has figures): without it and
    without `balanced_classes`, the first hundreds of updates only learn how rare positives are.
    """

    prediction_steps: int = 12
    offset: int = 3
    """Frames from a context vector to the first one it predicts. `automatic_offset` is fairseq's "auto"."""
    num_negatives: int = 10
    """For each frame, from the same utterance."""
    cross_sample_negatives: int = 0
    """For each frame, from all utterances of a device's share of the batch."""
    balanced_classes: bool = False
    """Negatives together weigh as much as the positive (where all are from the same utterance)."""
    infonce: bool = False
    """Softmax over the positive and its negatives, in place of a sigmoid for each."""


class Sums(NamedTuple):
    """What a batch, or a device's share of one, adds to the loss: sums, so that shares can be added."""

    loss: Array
    positives: Array
    """How many predictions there were: what fairseq calls the sample size."""
    correct: Array
    """Predictions whose positive scored above all its negatives."""


def automatic_offset(config: Architecture) -> int:
    """The smallest offset at which a predicted frame shares no sample with the one beside the prediction's own."""
    return ceil(config.receptive_field[0] / config.stride)


def shortest(config: Architecture, objective: Objective) -> int:
    """The fewest samples that give one prediction of each step."""
    frames = objective.offset + objective.prediction_steps
    return config.receptive_field[0] + (frames - 1) * config.stride


def random_predictions(config: Architecture, objective: Objective, seed: int) -> dict[str, np.ndarray]:
    """The prediction head before any training, distributed as torch's ConvTranspose2d: uniform within fan ** -0.5."""
    (z, c), steps = config.width, objective.prediction_steps
    generator, bound = np.random.default_rng([1, seed]), (z * steps) ** -0.5
    shapes = {"kernel": (steps, c, z), "bias": (z,)}
    return {name: generator.uniform(-bound, bound, shape).astype(np.float32) for name, shape in shapes.items()}


def draw_negatives(
    key: Key[Array, ""], rows: Int[Array, " b"], frames: Int[Array, " b"], width: int, objective: Objective
) -> Int[Array, "b t n"]:
    """Which frames stand against each of `width` frames: numbers of rows of a [b * width] list of all frames.

    Each is drawn evenly from the valid frames of the same row (then from those of all rows) but the frame itself. `rows` names
    the rows in the whole batch: what a row draws does not depend on how a batch is shared out, cross-sample negatives apart.
    """
    b, t = len(frames), jnp.arange(width)[:, None]
    first = jnp.arange(b) * width

    def own(row: Array, count: Array) -> Array:
        shape = (width, objective.num_negatives)
        drawn = jax.random.randint(jax.random.fold_in(key, row), shape, 0, jnp.maximum(count - 1, 1))
        return jnp.minimum(drawn + (drawn >= t), width - 1)

    negatives = jax.vmap(own)(rows, frames) + first[:, None, None]
    if not objective.cross_sample_negatives:
        return negatives
    before = jnp.cumsum(frames) - frames  # valid frames of the rows above
    total = frames.sum()

    def across(i: Array, row: Array) -> Array:
        shape = (width, objective.cross_sample_negatives)
        folded = jax.random.fold_in(jax.random.fold_in(key, row), b)
        drawn = jax.random.randint(folded, shape, 0, jnp.maximum(total - 1, 1))
        drawn = jnp.minimum(drawn + (drawn >= before[i] + t), jnp.maximum(total - 1, 0))
        home = jnp.searchsorted(before + frames, drawn, side="right")
        return jnp.minimum(first[home] + drawn - before[home], b * width - 1)

    return jnp.concatenate([negatives, jax.vmap(across)(jnp.arange(b), rows)], axis=2)


def scores(
    head: Mapping[str, Array],
    z: Float[Array, "b t d"],
    c: Float[Array, "b t e"],
    negatives: Int[Array, "b t n"],
    objective: Objective,
) -> Float[Array, "b t p m"]:
    """Products of predictions with the frame t they are made for (first) and with its negatives, for each of p steps.

    Laid out by the predicted frame: entry [b, t, i] is predicted from c at t - offset - i, and means nothing before 0.
    """
    width, dtype = z.shape[1], z.dtype
    furthest = objective.offset + objective.prediction_steps - 1
    c = jnp.pad(c, ((0, 0), (furthest, 0), (0, 0)))
    steps = range(furthest - objective.offset, -1, -1)
    behind = jnp.stack([c[:, first : first + width] for first in steps])
    predictions = jnp.einsum("pbte,ped->pbtd", behind, head["kernel"].astype(dtype), precision=lax.Precision.HIGHEST)
    predictions += head["bias"].astype(dtype)
    against = jnp.concatenate([z[:, :, None], z.reshape(-1, z.shape[2])[negatives]], axis=2)
    wide = jnp.promote_types(dtype, jnp.float32)
    return jnp.einsum("pbtd,btmd->btpm", predictions, against, precision=lax.Precision.HIGHEST, preferred_element_type=wide)


def predicted(frames: Int[Array, " b"], width: int, objective: Objective) -> Bool[Array, "b t p"]:
    """True where a valid frame t is predicted from a frame that is there, `offset` + i before it."""
    reach = jnp.arange(width)[:, None] >= objective.offset + jnp.arange(objective.prediction_steps)
    return valid(frames, width)[:, :, None] & reach


def sums(
    head: Mapping[str, Array],
    z: Float[Array, "b t d"],
    c: Float[Array, "b t e"],
    frames: Int[Array, " b"],
    negatives: Int[Array, "b t n"],
    objective: Objective,
) -> Sums:
    """Loss, count of positives and of those told from all their negatives, over the whole batch."""
    counted = predicted(frames, z.shape[1], objective)
    x = scores(head, z, c, negatives, objective)
    if objective.infonce:
        losses = jax.nn.logsumexp(x, axis=-1) - x[..., 0]
    else:
        each = optax.sigmoid_binary_cross_entropy(x, jnp.arange(x.shape[-1]) == 0)
        weight = 1 / objective.num_negatives if objective.balanced_classes else 1
        losses = each[..., 0] + weight * each[..., 1:].sum(-1)
    correct = counted & (x[..., 0] > x[..., 1:].max(-1))
    return Sums(jnp.where(counted, losses, 0).sum(), counted.sum(), correct.sum())
