"""The network of wav2vec (Schneider et al., 2019) as fairseq computes it, and its parameters.

One departure from fairseq, on purpose: a batch comes with the lengths of its members, and group norm takes its statistics
over each member's own valid frames. fairseq has no lengths; there, zeros that fill up a batch change every frame of the
shorter members. Here a batch gives what each utterance alone gives, and what fairseq gives for it alone.

Source: fairseq 0.12.2, fairseq/models/wav2vec/wav2vec.py. The flags of `Architecture` have their names there.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxser import spectral
from jaxser.architecture import Architecture, frames_of_layer

EPSILON = 1e-5
"""torch's default for group norm; flax's is 1e-6. It matters for quiet audio."""

SPECTRAL_KERNELS = range(5, spectral.LONGEST + 1)
"""Context kernels of so many frames go through `spectral` on a CPU; shorter ones gain nothing by it."""

NORM = {"scale": 1, "bias": 0}
"""Where the norms' parameters start."""


class Block(nn.Module):
    """Convolution, group norm over valid frames, ReLU: one layer of either network.

    Products are computed in `dtype`; the norm, as in fairseq, in float32 at least. Parameters start at zero: they are read
    from a checkpoint or drawn by `random_params`.
    """

    channels: int
    kernel: int
    stride: int
    dtype: Any
    bias: bool
    affine: bool
    spectral: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "b t1 c"], frames: Int[Array, " b"]) -> Float[Array, "b t2 d"]:
        """`frames` counts the valid frames of the output."""
        shape = (spectral.PRODUCTS if self.spectral else self.kernel, x.shape[2], self.channels)
        kernel = jnp.asarray(self.param("kernel", nn.initializers.zeros, shape), self.dtype)
        x = x.astype(self.dtype)
        x = spectral.convolve(x, kernel, self.kernel) if self.spectral else convolve(x, kernel, self.stride)
        x = x.astype(jnp.promote_types(self.dtype, jnp.float32))
        if self.bias:
            x += self.param("kernel_bias", nn.initializers.zeros, (self.channels,))
        scale = self.param("scale", nn.initializers.ones, (self.channels,)) if self.affine else 1
        bias = self.param("bias", nn.initializers.zeros, (self.channels,)) if self.affine else 0
        return nn.relu(group_norm(x, frames, scale, bias, rounded=jnp.dtype(self.dtype).itemsize < 4))


def convolve(x: Float[Array, "b t1 c"], kernel: Float[Array, "k c d"], stride: int) -> Float[Array, "b t2 d"]:
    """Correlate over time, nothing padded."""
    if x.dtype == jnp.float64:
        # XLA convolves float64 on a CPU several hundred times slower than float32; its matrix products are not so.
        frames = frames_of_layer(x.shape[1], len(kernel), stride)
        taps = (x[:, i : i + (frames - 1) * stride + 1 : stride] for i in range(len(kernel)))
        return sum(jnp.matmul(tap, matrix) for tap, matrix in zip(taps, kernel, strict=True))
    if x.shape[2] == 1 and jax.default_backend() != "cpu":
        return convolve_one_channel(x, kernel, stride)
    return lax.conv_general_dilated(
        x, kernel, (stride,), "VALID", dimension_numbers=("NWC", "WIO", "NWC"), precision=lax.Precision.HIGHEST
    )


def convolve_one_channel(x: Float[Array, "b t1 1"], kernel: Float[Array, "k 1 d"], stride: int) -> Float[Array, "b t2 d"]:
    """The same of a waveform, as one product. On a GPU it takes a quarter of the time, for matrix units want more than one
    channel; on a CPU twice the time."""
    frames = frames_of_layer(x.shape[1], len(kernel), stride)
    taps = [x[:, i : i + (frames - 1) * stride + 1 : stride] for i in range(len(kernel))]
    return jnp.matmul(jnp.concatenate(taps, -1), kernel[:, 0], precision=lax.Precision.HIGHEST)


def group_norm(
    x: Float[Array, "b t d"], frames: Int[Array, " b"], scale: Any, bias: Any, rounded: bool = False
) -> Float[Array, "b t d"]:
    """Group norm with one group: statistics over all channels and the first `frames` frames of each member.

    `rounded` says that x was rounded to 16 bits before. Its statistics are then taken in one pass.
    """
    moments = _moments_at_once if rounded else _moments
    mean, variance = moments(x, valid(frames, x.shape[1])[:, :, None], jnp.maximum(frames, 1).astype(x.dtype)[:, None, None])
    # A row without a valid frame fills up a batch, or is silent. It has no variance, and multiplied by EPSILON ** -0.5 in every
    # layer it would overflow; nobody looks at it, but its gradient, 0 times infinity, would be NaN for all.
    inverse = jnp.where(frames[:, None, None] > 0, lax.rsqrt(variance + EPSILON), 0)
    return (x - mean) * (inverse * scale) + bias


def _moments(x: Array, mask: Array, frames: Array) -> tuple[Array, Array]:
    count = frames * x.shape[2]  # an hour of audio is past 32-bit integers
    # Two passes: a mean of squares less a squared mean loses all digits where the mean is large.
    mean = jnp.where(mask, x, 0).sum((1, 2), keepdims=True) / count
    return mean, jnp.where(mask, jnp.square(x - mean), 0).sum((1, 2), keepdims=True) / count


def _moments_at_once(x: Array, mask: Array, frames: Array) -> tuple[Array, Array]:
    # Frame by frame, and then of the frames (Chan et al., 1979). What a mean of squares in 32 bits loses within a frame is less
    # than what was lost when x was rounded to 16; and x, which is read from memory, is read once.
    means = x.mean(2, keepdims=True)
    variances = jnp.square(x).mean(2, keepdims=True) - jnp.square(means)
    mean = jnp.where(mask, means, 0).sum(1, keepdims=True) / frames
    variance = jnp.where(mask, variances + jnp.square(means - mean), 0).sum(1, keepdims=True) / frames
    return mean, jnp.maximum(variance, 0)


def valid(frames: Int[Array, " b"], width: int) -> Bool[Array, "b t"]:
    """True for the first `frames[i]` of `width` frames in row i."""
    return jnp.arange(width) < frames[:, None]


class Wav2Vec(nn.Module):
    """Encoder and context network. Every layer's output is sown as the intermediate `layers`, encoder first.

    With `spectral`, the context kernels named by SPECTRAL_KERNELS are expected as `spectral_params` makes them.
    """

    config: Architecture
    dtype: Any = jnp.float32
    spectral: bool = False

    @nn.compact
    def __call__(
        self, waveforms: Float[Array, "b s"], lengths: Int[Array, " b"]
    ) -> tuple[Float[Array, "b t d"], Float[Array, "b t e"], Int[Array, " b"]]:
        """z, c and the number of valid frames. What lies beyond a length is not looked at; frames beyond theirs are zero."""
        config = self.config
        x = jnp.where(valid(lengths, waveforms.shape[1]), waveforms, 0)[:, :, None]
        frames, affine = lengths, not config.non_affine_group_norm
        for i, (channels, kernel, stride) in enumerate(config.conv_feature_layers):
            before, residual = frames, x
            frames = frames_of_layer(frames, kernel, stride)
            x = Block(channels, kernel, stride, self.dtype, False, affine, name=f"encoder_{i}")(x, frames)
            if config.skip_connections_feat and residual.shape[2] == channels:
                x = (x + _strided(residual, before, frames, x.shape[1])) * config.residual_scale**0.5
            self.sow("intermediates", "layers", x)
        if config.log_compression:
            x = jnp.log(jnp.abs(x) + 1)
        z = x
        for i, (channels, kernel, _) in enumerate(config.conv_aggregator_layers):
            residual = x
            first = jnp.zeros_like(x[:, :1]) if config.agg_zero_pad else x[:, :1]
            x = jnp.concatenate([jnp.repeat(first, kernel - 1, axis=1), x], axis=1)
            bias, fast = not config.no_conv_bias, self.spectral and kernel in SPECTRAL_KERNELS
            x = Block(channels, kernel, 1, self.dtype, bias, affine, fast, name=f"context_{i}")(x, frames)
            if config.skip_connections_agg:
                if residual.shape[2] != channels:
                    projection = self.param(f"projection_{i}", nn.initializers.zeros, (residual.shape[2], channels))
                    residual = jnp.matmul(
                        residual.astype(self.dtype), projection.astype(self.dtype), precision=lax.Precision.HIGHEST
                    )
                x = (x + residual) * config.residual_scale**0.5
            self.sow("intermediates", "layers", x)
        mask = valid(frames, x.shape[1])[:, :, None]
        return jnp.where(mask, z, 0), jnp.where(mask, x, 0), frames


def _strided(x: Array, before: Array, after: Array, width: int) -> Array:
    # fairseq takes every (t_in // t_out)-th frame of the layer's input, by the lengths at hand and not by the layer's stride:
    # near the end of a short utterance that is more than the stride. Each member has its own lengths here.
    step = before // jnp.maximum(after, 1)
    place = jnp.minimum(jnp.arange(width) * step[:, None], x.shape[1] - 1)
    return jnp.take_along_axis(x, place[:, :, None], axis=1)


def spectral_params(config: Architecture, params: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters that Wav2Vec(config, spectral=True) takes."""
    params = dict(params)
    for i, (_, kernel, _) in enumerate(config.conv_aggregator_layers):
        if kernel in SPECTRAL_KERNELS:
            layer = params[f"context_{i}"]
            params[f"context_{i}"] = {**layer, "kernel": spectral.transform_kernel(np.asarray(layer["kernel"]))}
    return params


def parameter_shapes(config: Architecture) -> dict[str, Any]:
    """The tree of parameters as jax.ShapeDtypeStruct, with nothing computed."""
    waveforms = jnp.zeros((1, config.receptive_field[0]))
    return jax.eval_shape(Wav2Vec(config).init, jax.random.key(0), waveforms, jnp.array([1]))["params"]


def random_params(config: Architecture, seed: int) -> dict[str, Any]:
    """Weights as they are before any training: an untrained network, for comparison.

    Distributed as fairseq's (torch's Conv1d): kernels and their biases uniform within fan_in ** -0.5, norms 1 and 0.
    """
    generator = np.random.default_rng(seed)

    def draw(shape: tuple[int, ...], fan_in: int) -> np.ndarray:
        return generator.uniform(-(fan_in**-0.5), fan_in**-0.5, shape).astype(np.float32)

    params = {}
    for name, leaf in sorted(parameter_shapes(config).items()):
        if not isinstance(leaf, Mapping):
            params[name] = draw(leaf.shape, leaf.shape[0])
            continue
        fan_in = leaf["kernel"].shape[0] * leaf["kernel"].shape[1]
        params[name] = {key: draw(leaf[key].shape, fan_in) for key in ("kernel", "kernel_bias") if key in leaf}
        params[name] |= {key: np.full(leaf[key].shape, value, np.float32) for key, value in NORM.items() if key in leaf}
    return params
