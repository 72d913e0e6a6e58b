"""The paper's four heads (its Figure 1): frames of frozen features -> class logits; and the table of all heads.

Each takes standardised Frames f32[b, t, d] with their mask and gives f32[b, c]; padded frames change nothing. The pooling
of `mean` and `meanmax` has no parameters and commutes with standardisation, so `Head.summarise` does it once for a whole
corpus and training sees one or two rows an utterance instead of hundreds.

Dropout comes after each layer, as in the paper, which gives no rate. One mask serves all frames of an utterance: drawn
for every frame anew, it would average out over some 200 frames before the mean and leave next to nothing of itself.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxser import pooling
from jaxser.aligned import Aligned, Text, Voice
from jaxser.store import Frames, blocks

DROPOUT = 0.2
"""Not given in the paper; benchmarks/SCORES.md has the evidence."""

AVERAGE_FRAMES = {"lld": 1, "wav2vec": 16}
"""By kind of features: consecutive frames averaged before attention and MLP. The paper gives them every frame. wav2vec's come
every 10 ms and are much alike: sixteen averaged (160 ms, about a syllable) train in a tenth of the time, no worse:
benchmarks/SCORES.md has the measured effect."""

RECURRENT_AVERAGE = {"lld": 4, "wav2vec": 8}
"""The same before a recurrent head: 100 ms of descriptors, 80 ms of wav2vec's frames. An LSTM takes one frame after the other,
so its time is the number of them."""

MLP_PARAMETERS = 21_508
"""What the MLP has at 34 features, 4 classes and two hidden layers of 128. The paper scales its MLPs so that their capacity
matches between feature sets and gives no sizes; here the width is the one that comes nearest to this count."""


def mean_of(frames: Frames) -> Frames:
    """The mean over the valid frames, as a single row: f32[n, 1, d]."""
    weights = frames.mask / frames.mask.sum(-1, keepdims=True)
    return _rows(np.einsum("ntd,nt->nd", frames.x, weights.astype(np.float32), optimize=True)[:, None])


def mean_and_max_of(frames: Frames) -> Frames:
    """The mean and the maximum over the valid frames, as two rows: f32[n, 2, d]."""
    highest = np.where(frames.mask[..., None], frames.x, -np.inf).max(1).astype(np.float32)
    return _rows(np.concatenate([mean_of(frames).x, highest[:, None]], 1))


def _rows(x: np.ndarray) -> Frames:
    return Frames(x, np.ones(x.shape[:2], bool))


class Linear(nn.Module):
    """`mean` and `meanmax`: one linear layer on the pooled rows, f32[b, p, d] -> f32[b, c]."""

    classes: int
    dropout: float

    @nn.compact
    def __call__(self, frames: Frames, train: bool) -> Float[Array, "b c"]:
        pooled = frames.x.reshape(len(frames.x), -1)
        return nn.Dense(self.classes)(nn.Dropout(self.dropout)(pooled, deterministic=not train))


class Attention(nn.Module):
    """`attention`: the mean weighted by one logistic score a frame, then a linear layer.

    The weights are a softmax over the valid frames of u.x_t, the weighted pooling of Mirsamadi et al., ICASSP 2017.
    """

    classes: int
    dropout: float

    @nn.compact
    def __call__(self, frames: Frames, train: bool) -> Float[Array, "b c"]:
        # No bias: a softmax does not see it, so its gradient is rounding noise, and Adam would blow that up to full steps.
        score = nn.Dense(1, use_bias=False)(frames.x)[..., 0]
        pooled = pooling.attended(frames.x, score, frames.mask)
        return nn.Dense(self.classes)(nn.Dropout(self.dropout)(pooled, deterministic=not train))


class MLP(nn.Module):
    """`mlp`: two hidden layers on every frame, the mean over frames, then the linear output layer.

    Padding is not computed: the valid frames of the batch are laid end to end first. The mean of the frames' outputs is the
    output of their mean, for the last layer is linear: it is computed once. So is the second dropout, whose one mask for all
    frames commutes with the mean.
    """

    classes: int
    dropout: float
    room: int | None = None
    """For how many frames there is room, which must be as many as the batch has, or more. Default: its padded size."""

    @nn.compact
    def __call__(self, frames: Frames, train: bool) -> Float[Array, "b c"]:
        x, whose = end_to_end(frames, self.room)
        batch, width = len(frames.x), mlp_width(x.shape[1], self.classes)
        x = nn.relu(nn.Dense(width)(x))
        kept = nn.Dropout(self.dropout)(jnp.ones((batch, width), x.dtype), deterministic=not train)
        x = nn.relu(nn.Dense(width)(x * kept[jnp.minimum(whose, batch - 1)]))
        pooled = pooling.sums_of_each(x, whose, batch) / frames.mask.sum(-1)[:, None]
        return nn.Dense(self.classes)(nn.Dropout(self.dropout)(pooled, deterministic=not train))


def end_to_end(frames: Frames, room: int | None = None) -> tuple[Float[Array, "p d"], Int[Array, " p"]]:
    """The valid frames of a batch one after the other, f[p, d], and whose each one is, i[p].

    p is `room`, or the padded size of the batch. What is left of the room holds other frames and is nobody's: one past the
    last member's number.
    """
    batch, longest, features = frames.x.shape
    count = frames.mask.sum(-1)
    end = jnp.cumsum(count)
    start = end - count
    place = jnp.arange(room or batch * longest)
    whose = (place[:, None] >= end).sum(1)
    there = jnp.minimum(whose, batch - 1)
    row = there * longest + jnp.clip(place - start[there], 0, longest - 1)
    return jnp.asarray(frames.x).reshape(batch * longest, features)[row], whose


def mlp_parameters(features: int, width: int, classes: int) -> int:
    """Weights and biases of the MLP with two hidden layers of `width`."""
    return (features + 1) * width + (width + 1) * width + (width + 1) * classes


def mlp_width(features: int, classes: int) -> int:
    """The hidden width at which the MLP's parameter count is nearest to MLP_PARAMETERS."""
    return min(range(1, 1024), key=lambda width: abs(mlp_parameters(features, width, classes) - MLP_PARAMETERS))


@dataclass(frozen=True)
class Head:
    """A head as the commands know it: what it reads, the module, and how it trains by default."""

    module: Callable[..., nn.Module]
    updates: Mapping[str, int]
    """How many, by kind of features: of the sound, or of the words where those are all it reads."""
    inputs: tuple[Literal["audio", "text"], ...] = ("audio",)
    pool: Callable[[Frames], Frames] | None = None
    """Pooling that has no parameters and commutes with standardisation."""
    average: Mapping[str, int] | None = None
    """By kind of features, how many frames of sound are averaged into one; None where that would change nothing."""

    def summarise(self, frames: Frames) -> Frames:
        """What training reads: the frames as they are, or, where all that counts is a pool of them, that, computed once."""
        if self.pool is None:
            return frames
        return Frames(*map(np.concatenate, zip(*map(self.pool, blocks(frames)), strict=True)))


# The paper trains for an unknown number of epochs. These are numbers of updates, the same for every size of training set, so
# that a small set is not simply trained less. benchmarks/SCORES.md has the rule and the evidence.
HEADS = {
    "mean": Head(Linear, {"lld": 40_000, "wav2vec": 80_000}, pool=mean_of),
    "meanmax": Head(Linear, {"lld": 40_000, "wav2vec": 80_000}, pool=mean_and_max_of),
    "attention": Head(Attention, {"lld": 40_000, "wav2vec": 80_000}, average=AVERAGE_FRAMES),
    "mlp": Head(MLP, {"lld": 8_000, "wav2vec": 16_000}, average=AVERAGE_FRAMES),
    "bilstm": Head(Voice, {"lld": 2_000, "wav2vec": 2_000}, average=RECURRENT_AVERAGE),
    "text": Head(Text, {"bert": 2_000, "glove": 2_000}, inputs=("text",)),
    "aligned": Head(Aligned, {"lld": 2_000, "wav2vec": 2_000}, inputs=("audio", "text"), average=RECURRENT_AVERAGE),
}
