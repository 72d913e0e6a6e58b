"""From many frames (or words) of an utterance to one vector: padded ones have no part in it."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

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


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def sums_of_each(x: Float[Array, "p d"], whose: Int[Array, " p"], count: int) -> Float[Array, "b d"]:
    """The sum of each member's frames, of `count` members; a frame with another number is nobody's."""
    # A product that only adds up: accelerators would round what it takes along.
    return jnp.matmul(jax.nn.one_hot(whose, count, dtype=x.dtype, axis=0), x, precision="highest")


def _sums_forward(x: Array, whose: Array, count: int) -> tuple[Array, Array]:
    return sums_of_each(x, whose, count), whose


def _sums_backward(count: int, whose: Array, gradient: Array) -> tuple[Array, None]:
    # Of its sum's gradient each frame has a copy. As a product, which is what differentiating the one above gives, it would
    # have to be written down before anything is done with it.
    return jnp.where((whose < count)[:, None], gradient[jnp.minimum(whose, count - 1)], 0), None


sums_of_each.defvjp(_sums_forward, _sums_backward)
