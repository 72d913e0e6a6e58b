"""From many frames (or words) of an utterance to one vector: padded ones have no part in it."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def softmax_over(scores: Float[Array, "*b t"], mask: Bool[Array, "*b t"]) -> Float[Array, "*b t"]:
    """Weights that sum to one over the valid frames; exactly zero where there are none."""
    return jax.nn.softmax(jnp.where(mask, scores, -jnp.inf), axis=-1)


def attended(x: Float[Array, "b t d"], scores: Float[Array, "b t"], mask: Bool[Array, "b t"]) -> Float[Array, "b d"]:
    """The mean of the frames weighted by a softmax of their scores: the pooling of Mirsamadi et al., ICASSP 2017."""
    return jnp.einsum("btd,bt->bd", x, softmax_over(scores, mask))


def highest(x: Float[Array, "b t d"], mask: Bool[Array, "b t"]) -> Float[Array, "b d"]:
    """The maximum of each feature over the valid frames."""
    return jnp.where(mask[..., None], x, -jnp.inf).max(1)
