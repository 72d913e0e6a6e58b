"""Speech and words together: the alignment of Xu et al. (Interspeech 2019, arXiv 1909.05645), and its two halves alone.

A bidirectional LSTM reads the frames of sound, another the words; every word then looks at all frames and takes what it
finds there to itself; a third LSTM reads the words so enriched. Neither paper gives sizes beyond 100 states a direction.
Padded frames and words have no part in anything.

What is Xu's and what is ours: the score, the softmax over frames, the third LSTM and the maximum over words are his
(equations 1 to 6 there). Dropout after each layer is the paper's, one mask for all frames of an utterance ours.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxser import pooling
from jaxser.lstm import BiLSTM
from jaxser.pooling import Given
from jaxser.store import Frames

WIDTH = 100
"""States of an LSTM in each direction."""

DENSE = 128
"""Width of the two dense layers of `bilstm`, which no source gives: that of the MLP on descriptors."""


class Alignment(nn.Module):
    """How much each word looks at each frame: f[b, k, t], for each word a softmax over the valid frames.

    The score is tanh(u.s + v.h + b) of a frame's state s and a word's state h. Without the tanh the word's part would cancel
    in the softmax; with it two weights of a word differ by a factor of e^2 = 7.4 at the most, so that maps over hundreds of
    frames are diffuse by construction.
    """

    @nn.compact
    def __call__(
        self, frames: Float[Array, "b t e"], words: Float[Array, "b k e"], mask: Bool[Given, "b t"]
    ) -> Float[Array, "b k t"]:
        of_frames = nn.Dense(1, use_bias=False, name="frame", param_dtype=frames.dtype)(frames)[..., 0]
        of_words = nn.Dense(1, name="word", param_dtype=frames.dtype)(words)[..., 0]
        scores = jnp.tanh(of_words[:, :, None] + of_frames[:, None])
        return pooling.softmax_over(scores, jnp.broadcast_to(mask[:, None], scores.shape))


class Aligned(nn.Module):
    """`aligned`: Frames of sound and of words -> logits f[b, c]. The alignment is sown as intermediate `attention`."""

    classes: int
    dropout: float
    width: int = WIDTH

    @nn.compact
    def __call__(self, audio: Frames, text: Frames, train: bool) -> Float[Array, "b c"]:
        heard = _dropped(BiLSTM(self.width, name="audio")(audio.x, audio.mask), self.dropout, train)
        words = _dropped(BiLSTM(self.width, name="text")(text.x, text.mask), self.dropout, train)
        weights = Alignment(name="alignment")(heard, words, audio.mask)
        self.sow("intermediates", "attention", weights)
        both = jnp.concatenate([jnp.einsum("bkt,bte->bke", weights, heard), words], -1)
        both = BiLSTM(self.width, name="both")(both, text.mask)
        return _classified(pooling.highest(both, text.mask), self.classes, self.dropout, train)


class Text(nn.Module):
    """`text`: the words alone, a bidirectional LSTM and the maximum over words."""

    classes: int
    dropout: float
    width: int = WIDTH

    @nn.compact
    def __call__(self, text: Frames, train: bool) -> Float[Array, "b c"]:
        words = BiLSTM(self.width, name="text")(text.x, text.mask)
        return _classified(pooling.highest(words, text.mask), self.classes, self.dropout, train)


class Voice(nn.Module):
    """`bilstm`: the sound alone, two dense layers, a bidirectional LSTM and attention pooling (Mirsamadi et al., 2017), the
    first row of the paper's Table 2."""

    classes: int
    dropout: float
    width: int = WIDTH
    dense: int = DENSE

    @nn.compact
    def __call__(self, audio: Frames, train: bool) -> Float[Array, "b c"]:
        x = audio.x
        for name in ("first", "second"):
            x = _dropped(nn.relu(nn.Dense(self.dense, name=name, param_dtype=x.dtype)(x)), self.dropout, train)
        x = BiLSTM(self.width, name="audio")(x, audio.mask)
        score = nn.Dense(1, use_bias=False, name="attention", param_dtype=x.dtype)(x)[..., 0]  # a softmax sees no bias
        return _classified(pooling.attended(x, score, audio.mask), self.classes, self.dropout, train)


def _dropped(x: Float[Array, "b t d"], rate: float, train: bool) -> Float[Array, "b t d"]:
    return nn.Dropout(rate, broadcast_dims=(1,))(x, deterministic=not train)


def _classified(pooled: Float[Array, "b d"], classes: int, rate: float, train: bool) -> Float[Array, "b c"]:
    dropped = nn.Dropout(rate)(pooled, deterministic=not train)
    return nn.Dense(classes, name="classes", param_dtype=pooled.dtype)(dropped)
