"""A bidirectional LSTM that sees valid frames only: what torch computes on packed sequences, as one scan.

Both directions step together. The backward one reads the padded frames turned round, so that its padding comes first: a
padded step leaves the state as it is, and the state before the first valid frame is zero, wherever that frame lies. The
product with the input is taken for all frames at once, outside the scan, and so is the gradient of the recurrent matrix.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxser.pooling import Given

DIRECTIONS = 2


class BiLSTM(nn.Module):
    """Frames f[b, t, d] -> f[b, t, 2 h]: the forward states beside the backward ones, zero where a frame is padding.

    Parameters, with the gates in torch's order i, f, g, o: `input` f[2, d, 4 h], `recurrent` f[2, h, 4 h], `bias` f[2, 4 h].
    All are drawn evenly from -1/sqrt(h) to 1/sqrt(h), as torch draws its own. A departure from torch: it has two biases a
    gate, of which only the sum matters to what comes out; here is one. Under Adam, which steps both, torch's sum moves about
    twice as fast.
    """

    width: int
    """h, of each direction."""

    @nn.compact
    def __call__(self, x: Float[Given, "b t d"], mask: Bool[Given, "b t"]) -> Float[Array, "b t e"]:
        batch, frames, features = x.shape
        gates = 4 * self.width
        bound = self.width**-0.5

        def draw(key, shape):
            return jax.random.uniform(key, shape, x.dtype, -bound, bound)

        of_input = self.param("input", draw, (DIRECTIONS, features, gates))
        recurrent = self.param("recurrent", draw, (DIRECTIONS, self.width, gates))
        bias = self.param("bias", draw, (DIRECTIONS, gates))

        # One plain product for both directions and all frames: on a CPU far faster than one a step.
        projected = x.reshape(batch * frames, features) @ of_input.transpose(1, 0, 2).reshape(features, -1)
        projected = projected.reshape(batch, frames, DIRECTIONS, gates).transpose(1, 2, 0, 3) + bias[:, None]
        forward, backward = projected[:, 0], projected[::-1, 1]
        driven = jnp.stack([forward, backward], 1)
        valid = jnp.stack([mask.T, mask.T[::-1]], 1)[..., None]
        states = _hidden(driven, recurrent, valid)
        both = jnp.concatenate([states[:, 0], states[::-1, 1]], -1).transpose(1, 0, 2)
        return jnp.where(mask[..., None], both, 0)


def _scanned(
    driven: Float[Array, "t s b g"], recurrent: Float[Given, "s h g"], valid: Bool[Given, "t s b 1"]
) -> Float[Array, "t s b h"]:
    """The hidden states after each step, from what the input does to the gates."""

    def step(state, now):
        hidden, cell = state
        driven, here = now
        i, f, g, o = jnp.split(driven + jnp.einsum("sbh,shg->sbg", hidden, recurrent), 4, axis=-1)
        new_cell = jax.nn.sigmoid(f) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
        new_hidden = jax.nn.sigmoid(o) * jnp.tanh(new_cell)
        state = jnp.where(here, new_hidden, hidden), jnp.where(here, new_cell, cell)
        return state, state[0]

    zero = jnp.zeros((*driven.shape[1:3], recurrent.shape[1]), driven.dtype)
    return jax.lax.scan(step, (zero, zero), (driven, valid))[1]


# Left to itself the gradient of the recurrent matrix is added up step by step: for many runs at once, the size of all their
# matrices is read and written at each. It is one product over all steps, for the gradient of the gates comes out anyway.
_hidden = jax.custom_vjp(_scanned)


def _hidden_forward(driven: Array, recurrent: Array, valid: Array) -> tuple[Array, tuple[Any, Array]]:
    states, back = jax.vjp(lambda driven: _scanned(driven, recurrent, valid), driven)
    return states, (back, states)


def _hidden_backward(kept: tuple[Any, Array], gradient: Array) -> tuple[Array, Array, None]:
    back, states = kept
    (of_gates,) = back(gradient)
    before = jnp.concatenate([jnp.zeros_like(states[:1]), states[:-1]])
    return of_gates, jnp.einsum("tsbh,tsbg->shg", before, of_gates), None


_hidden.defvjp(_hidden_forward, _hidden_backward)
