"""Convolution over time with fewer multiplications: overlap-save through a short real Fourier transform.

A window of 32 frames goes through a matrix to 47 numbers a channel, is multiplied by the kernel's own 47 matrices, one
[c, d] product each, and comes back as 33 - k frames of output. That is 47 / (33 - k) products a frame in place of k: 2.35
in place of 13. Frequencies are complex and cost three real products each (Gauss), folded into the three matrices, so that
nothing complex is left at run time. The transforms are orthogonal up to scale, which keeps float32 error at that of the
direct sum; Toom-Cook's, tried beside it, multiply it by ten.
"""

from functools import cache
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

WINDOW = 32
"""Frames a transform. 24 and 48 were no faster for kernels of 5 to 13 frames; the kernels grow with it."""

LONGEST = WINDOW // 2 + 1
"""Frames of the longest kernel: a window reaches no further than into the next one."""

PRODUCTS = 3 * (WINDOW // 2 - 1) + 2
"""Real products a window: three for each complex frequency, one each for the lowest and the highest."""


class Transform(NamedTuple):
    """The three matrices of one kernel length: outputs = inverse @ ((kernel @ taps) * (forward @ window))."""

    forward: Float[np.ndarray, "p w"]
    kernel: Float[np.ndarray, "p k"]
    inverse: Float[np.ndarray, "m p"]


@cache
def transform(taps: int) -> Transform:
    """The matrices for kernels of `taps` frames, at most LONGEST, in float64."""
    if not 1 <= taps <= LONGEST:
        raise ValueError(f"a kernel of {taps} frames: 1 to {LONGEST} are possible in windows of {WINDOW}")
    window, tap, output = np.arange(WINDOW), np.arange(taps), np.arange(WINDOW - taps + 1)
    forward, kernel, inverse = [], [], []
    for frequency in range(WINDOW // 2 + 1):
        angle = 2 * np.pi * frequency / WINDOW
        # A layer correlates, so the kernel's transform is the conjugate one: c + id with the opposite sign of d.
        a, b = np.cos(angle * window), -np.sin(angle * window)
        c, d = np.cos(angle * tap), np.sin(angle * tap)
        real, imaginary = np.cos(angle * output), np.sin(angle * output)
        if frequency in (0, WINDOW // 2):
            forward += [a]
            kernel += [c]
            inverse += [real / WINDOW]
        else:
            # (a + ib)(c + id) from c(a + b), a(d - c) and b(c + d); the factor 2 stands for the conjugate frequency.
            forward += [a + b, a, b]
            kernel += [c, d - c, c + d]
            inverse += [2 / WINDOW * (real - imaginary), -2 / WINDOW * imaginary, -2 / WINDOW * real]
    return Transform(np.stack(forward), np.stack(kernel), np.stack(inverse, 1))


def transform_kernel(kernel: Float[np.ndarray, "k c d"]) -> Float[np.ndarray, "p c d"]:
    """A kernel of k frames as PRODUCTS matrices, once for all calls of `convolve`. Same precision as it came in."""
    taps, c, d = kernel.shape
    matrix = transform(taps).kernel.astype(kernel.dtype)
    return (matrix @ kernel.reshape(taps, -1)).reshape(-1, c, d)


def convolve(x: Float[Array, "b s c"], kernel: Float[Array, "p c d"], taps: int) -> Float[Array, "b t d"]:
    """Correlate x over time with a kernel of `taps` frames given by `transform_kernel`: t = s - taps + 1, nothing padded."""
    forward, _, inverse = (jnp.asarray(matrix, x.dtype) for matrix in transform(taps))
    b, s, c = x.shape
    t, step = s - taps + 1, WINDOW - taps + 1
    windows = -(-t // step)
    # A window is one step of frames and the first ones of the next: plain slices, which compile to better loops than a gather.
    x = jnp.pad(x, ((0, 0), (0, (windows + 1) * step - s), (0, 0))).reshape(b, windows + 1, step, c)
    x = jnp.concatenate([x[:, :-1], x[:, 1:, : taps - 1]], axis=2)
    # Time leads, so that each transform is one matrix product over all windows, utterances and channels.
    x = _product(forward, jnp.transpose(x, (2, 1, 0, 3)).reshape(WINDOW, -1)).reshape(PRODUCTS, windows * b, c)
    y = lax.dot_general(x, kernel, (((2,), (1,)), ((0,), (0,))), precision=lax.Precision.HIGHEST)
    y = _product(inverse, y.reshape(PRODUCTS, -1)).reshape(step, windows, b, -1)
    return jnp.transpose(y, (2, 1, 0, 3)).reshape(b, windows * step, -1)[:, :t]


def _product(matrix: Float[Array, "m n"], x: Float[Array, "n e"]) -> Float[Array, "m e"]:
    return jnp.matmul(matrix, x, precision=lax.Precision.HIGHEST)
