"""From many frames (or words) of an utterance to one vector: padded ones have no part in it."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

Given = Array | np.ndarray
"""Frames come from a store as numpy's and from a layer as jax's."""


def softmax_over(scores: Float[Array, "*b t"], mask: Bool[Given, "*b t"]) -> Float[Array, "*b t"]:
    """Weights that sum to one over the valid frames; exactly zero where there are none."""
    return jax.nn.softmax(jnp.where(mask, scores, -jnp.inf), axis=-1)


def attended(x: Float[Given, "b t d"], scores: Float[Array, "b t"], mask: Bool[Given, "b t"]) -> Float[Array, "b d"]:
    """The mean of the frames weighted by a softmax of their scores: the pooling of Mirsamadi et al., ICASSP 2017."""
    return jnp.einsum("btd,bt->bd", x, softmax_over(scores, mask))


def highest(x: Float[Given, "b t d"], mask: Bool[Given, "b t"]) -> Float[Array, "b d"]:
    """The maximum of each feature over the valid frames."""
    return jnp.where(mask[..., None], x, -jnp.inf).max(1)
