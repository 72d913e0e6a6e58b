"""Ours against fairseq's own code, unmodified: the same weights, saved by torch and read by the real converter."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import save_as_of_2019

from convert.wav2vec import Call, main
from jaxser import checkpoint, wav2vec
from jaxser.architecture import Architecture

SHAPES = {
    "large": {},
    "base": {
        "conv_feature_layers": "[(512, 10, 5), (512, 8, 4), (512, 4, 2), (512, 4, 2), (512, 4, 2)]",
        "conv_aggregator_layers": "[(512, 3, 1)] * 9",
        "skip_connections_agg": False,
    },
}

# Narrow, with widths that change and repeat, so that every path of the flags is taken: residuals with and without projection.
NARROW = {
    "conv_feature_layers": "[(24, 10, 5), (32, 8, 4), (32, 4, 2), (32, 4, 2), (32, 4, 2), (32, 1, 1)]",
    "conv_aggregator_layers": "[(32, 2, 1), (48, 3, 1), (48, 5, 1), (32, 13, 1)]",
}

FLAGS = {
    "default": {},
    "agg_zero_pad": {"agg_zero_pad": True},
    "no_conv_bias": {"no_conv_bias": True},
    "non_affine_group_norm": {"non_affine_group_norm": True},
    "skip_connections_feat": {"skip_connections_feat": True},
    "no skip_connections_agg": {"skip_connections_agg": False},
    "residual_scale": {"residual_scale": 0.3, "skip_connections_feat": True},
    "no log_compression": {"log_compression": False},
    "all": {
        "agg_zero_pad": True,
        "no_conv_bias": True,
        "non_affine_group_norm": True,
        "skip_connections_feat": True,
        "log_compression": False,
        "residual_scale": 0.7,
    },
}


def noise(samples: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, samples).astype(np.float32)


SIGNALS = {f"{n} samples": noise(n) for n in (465, 624, 625, 1_600, 12_345, 80_000)} | {
    "silence": np.zeros(16_000, np.float32),
    "a constant": np.full(16_000, 0.25, np.float32),
    "quiet": 0.01 * noise(16_000),
}
BATCHES = {
    "shortest": [SIGNALS["465 samples"]],
    "long": [SIGNALS["80000 samples"]],
    "others": [signal for signal in SIGNALS.values() if len(signal) <= 16_000],
}
"""What is computed at once: each length costs a compilation of every network."""


@dataclass(frozen=True)
class Pair:
    """fairseq's model and what the converter made of it."""

    original: Any
    encoder: wav2vec.Encoder
    params: dict[str, Any]
    prepared: dict[Any, tuple[Any, Any]] = field(default_factory=dict)

    @property
    def config(self) -> Architecture:
        return self.encoder.config

    def in_precision(self, dtype: Any) -> tuple[Any, Any]:
        """The parameters for direct and for spectral convolution. Call it for float64 where that is enabled."""
        if dtype not in self.prepared:
            params = jax.tree.map(lambda leaf: np.asarray(leaf, dtype), self.params)
            both = params, wav2vec.spectral_params(self.config, params)
            self.prepared[dtype] = jax.tree.map(jnp.asarray, both)
        return self.prepared[dtype]


@pytest.fixture(scope="session")
def pair(twins, tmp_path_factory):
    made: dict[str, Pair] = {}

    def make(name: str, options: dict[str, Any]) -> Pair:
        if name not in made:
            folder = tmp_path_factory.mktemp("pair")
            model, args = twins.fairseq_model(seed=1, **options)
            path = save_as_of_2019(folder / "checkpoint.pt", model, args)
            main(Call(path, str(folder / "converted")))
            params, _ = checkpoint.load(folder / "converted", wav2vec.KIND)
            params.pop(wav2vec.PREDICTIONS)
            made[name] = Pair(model, wav2vec.load(folder / "converted"), params)
        return made[name]

    return make


def layers_of_fairseq(model, signal: np.ndarray) -> list[np.ndarray]:
    """Every layer's output, f[t, d], encoder first; in place of the last of the encoder z, and of the context c."""
    import torch

    found: list[np.ndarray] = []
    blocks = [*model.feature_extractor.conv_layers, *model.feature_aggregator.conv_layers]
    # A block's input is the output of the layer before it, with its skip connection.
    hooks = [block.register_forward_pre_hook(lambda _, x: found.append(x[0][0].T.numpy())) for block in blocks]
    with torch.inference_mode():
        dtype = next(model.parameters()).dtype
        c = model.feature_aggregator(model.feature_extractor(torch.from_numpy(signal)[None].to(dtype)))
    for hook in hooks:
        hook.remove()
    return [*found[1:], c[0].T.numpy()]


def layers_of_ours(model: wav2vec.Wav2Vec, params: dict[str, Any], signals: Sequence[np.ndarray]) -> list[list[np.ndarray]]:
    """The same of each signal of a ragged batch."""
    apply = jax.jit(lambda params, *batch: model.apply({"params": params}, *batch, mutable="intermediates"))
    (z, c, _), sown = apply(params, *batch_of(signals))
    found, last = list(sown["intermediates"]["layers"]), len(model.config.conv_feature_layers) - 1
    layers = [*found[:last], z, *found[last + 1 : -1], c]
    counts = np.array([frames_of(model.config, len(signal)) for signal in signals])
    assert [layer.shape[1] for layer in layers] == counts.max(0).tolist()
    return [[np.asarray(x[i, :t]) for x, t in zip(layers, of, strict=True)] for i, of in enumerate(counts)]


def batch_of(signals: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The signals side by side, padded with zeros to the longest, and their lengths."""
    lengths = np.array([len(signal) for signal in signals])
    return np.stack([np.pad(signal, (0, lengths.max() - len(signal))) for signal in signals]), lengths


def frames_of(config: Architecture, samples: int) -> list[int]:
    """How many frames each layer has."""
    found = [samples]
    for _, kernel, stride in config.conv_feature_layers:
        found.append((found[-1] - kernel) // stride + 1)
    return found[1:] + found[-1:] * len(config.conv_aggregator_layers)


def worst(ours: list[np.ndarray], theirs: list[np.ndarray]) -> float:
    assert [x.shape for x in ours] == [x.shape for x in theirs]
    return max(float(np.abs(a - b).max()) for a, b in zip(ours, theirs, strict=True))


def compare_in_float32(pair: Pair, signals: Sequence[np.ndarray]) -> None:
    params, transformed = pair.in_precision(jnp.float32)
    direct = layers_of_ours(wav2vec.Wav2Vec(pair.config), params, signals)
    fast = layers_of_ours(wav2vec.Wav2Vec(pair.config, spectral=True), transformed, signals)
    for signal, *ours, called in zip(signals, direct, fast, encoded(pair, signals), strict=True):
        theirs = layers_of_fairseq(pair.original.float(), signal)
        errors = dict(zip(("direct", "spectral"), (worst(of, theirs) for of in ours), strict=True))
        errors["encoder"] = worst(called, ends(pair, theirs))
        print(f"float32, {len(signal)} samples:", ", ".join(f"{name} {error:.1e}" for name, error in errors.items()))
        assert max(errors.values()) < 5e-5, errors


def encoded(pair: Pair, signals: Sequence[np.ndarray]) -> list[list[np.ndarray]]:
    """z and c of each signal of a ragged batch, as the encoder gives them to everything else."""
    z, c, frames = pair.encoder(*batch_of(signals))
    return [[np.asarray(z[i, :t]), np.asarray(c[i, :t])] for i, t in enumerate(np.asarray(frames))]


def ends(pair: Pair, layers: list[np.ndarray]) -> list[np.ndarray]:
    """z and c among all layers."""
    return [layers[len(pair.config.conv_feature_layers) - 1], layers[-1]]


def compare_in_float64(pair: Pair, twins, signals: Sequence[np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    # The one change to fairseq's code: its Fp32GroupNorm casts to float32 whatever comes in. Here it does not.
    from torch.nn import functional

    def without_casts(self, x):
        return functional.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)

    monkeypatch.setattr(twins.fairseq_wav2vec().Fp32GroupNorm, "forward", without_casts)
    with jax.enable_x64(True):
        params, transformed = pair.in_precision(jnp.float64)
        doubled = [signal.astype(np.float64) for signal in signals]
        direct = layers_of_ours(wav2vec.Wav2Vec(pair.config, jnp.float64), params, doubled)
        fast = layers_of_ours(wav2vec.Wav2Vec(pair.config, jnp.float64, spectral=True), transformed, doubled)
    for signal, *ours in zip(signals, direct, fast, strict=True):
        theirs = layers_of_fairseq(pair.original.double(), signal)
        errors = dict(zip(("direct", "spectral"), (worst(of, theirs) for of in ours), strict=True))
        print(f"float64, {len(signal)} samples:", ", ".join(f"{name} {error:.1e}" for name, error in errors.items()))
        assert {of[-1].dtype for of in ours} == {np.dtype(np.float64)}
        assert max(errors.values()) < 1e-9, errors


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_layer_in_float32(pair, shape: str, batch: str):
    compare_in_float32(pair(shape, SHAPES[shape]), BATCHES[batch])


@pytest.mark.parametrize("batch", ["long", "others"])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_layer_in_float64(pair, twins, shape: str, batch: str, monkeypatch: pytest.MonkeyPatch):
    compare_in_float64(pair(shape, SHAPES[shape]), twins, BATCHES[batch], monkeypatch)


@pytest.mark.parametrize("flag", FLAGS)
def test_every_flag(pair, twins, flag: str, monkeypatch: pytest.MonkeyPatch):
    # 625 samples leave two frames: there the stride of a skip connection between features is 3 and not the layer's 2.
    signals = [SIGNALS[f"{n} samples"] for n in (465, 625, 12_345)]
    compare_in_float64(pair(flag, NARROW | FLAGS[flag]), twins, signals, monkeypatch)


@pytest.mark.parametrize("flag", FLAGS)
def test_every_flag_in_float32(pair, flag: str):
    made = pair(flag, NARROW | FLAGS[flag])
    signal = SIGNALS["12345 samples"]
    (called,) = encoded(made, [signal])
    assert worst(called, ends(made, layers_of_fairseq(made.original.float(), signal))) < 5e-5


def test_a_ragged_batch_is_its_members_alone(pair, twins):
    import torch

    made = pair("large", {})
    lengths = np.array([80_000, 40_000, 12_345, 465])
    batch = np.zeros((len(lengths), 80_000), np.float32)
    for i, n in enumerate(lengths):
        batch[i, :n] = noise(n, seed=i)
    z, c, frames = made.encoder(batch, lengths)
    with torch.inference_mode():
        model = made.original.float()
        padded = model.feature_extractor(torch.from_numpy(batch))
        twin_z, twin_c = twins.MaskedTwin(model)(torch.from_numpy(batch), torch.from_numpy(lengths))
        for one, other in zip(
            (twin_z, twin_c), twins.MaskedTwin(model, True)(*map(torch.from_numpy, (batch, lengths))), strict=True
        ):
            torch.testing.assert_close(one, other, rtol=0, atol=5e-5)
        for i, n in enumerate(lengths):
            alone_z, alone_c, count = made.encoder(batch[i : i + 1, :n], lengths[i : i + 1])
            t = int(count[0])
            assert t == int(frames[i]) == made.config.frames(int(n))
            ours = max(float(np.abs(z[i, :t] - alone_z[0]).max()), float(np.abs(c[i, :t] - alone_c[0]).max()))
            fairseq_alone = model.feature_extractor(torch.from_numpy(batch[i : i + 1, :n]))[0].T
            theirs = float((padded[i].T[:t] - fairseq_alone).abs().max())
            share = theirs / float(fairseq_alone.abs().mean())
            twin = float(np.abs(np.asarray(twin_z[i].T[:t]) - alone_z[0]).max())
            print(f"{n} of 80,000 samples: ours {ours:.1e}, masked twin {twin:.1e}, fairseq padded {theirs:.2g} ({share:.0%})")
            assert ours < 1e-5
            assert twin < 5e-5
            assert np.abs(np.asarray(twin_c[i].T[:t]) - alone_c[0]).max() < 5e-5
            assert not np.asarray(c[i, t:]).any()
