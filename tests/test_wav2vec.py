"""Properties of the network that need no torch; parity/test_wav2vec.py holds it against fairseq's own code."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import LITTLE

from jaxser import checkpoint, network, wav2vec
from jaxser.architecture import BASE, LARGE, NANO
from jaxser.errors import CallError, WorkError


@pytest.fixture(scope="module")
def encoder() -> wav2vec.Encoder:
    return wav2vec.load("random-nano:0")


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, shape).astype(np.float32)


def test_the_published_number_of_parameters():
    sizes = {name: leaf.size for name, leaf in checkpoint.named_leaves(network.parameter_shapes(LARGE))}
    assert sum(size for name, size in sizes.items() if name.startswith("encoder")) == 5_779_456
    assert sum(size for name, size in sizes.items() if name.startswith("context")) == 23_611_392
    assert len(sizes) == 69  # 71 with the prediction head's two


def test_group_norm_worked_by_hand():
    # One group over both channels and the first two frames: mean 2.5, variance 1.25. The third frame is not counted.
    x = jnp.array([[[1.0, 2.0], [3.0, 4.0], [100.0, 100.0]]])
    y = network.group_norm(x, jnp.array([2]), jnp.array([2.0, 1.0]), jnp.array([0.0, 1.0]))
    root = np.sqrt(1.25 + 1e-5)
    np.testing.assert_allclose(y[0, :2], [[-3 / root, 1 - 0.5 / root], [1 / root, 1 + 1.5 / root]], rtol=1e-6)


@pytest.mark.parametrize("kind", ["float32", "float64", "bfloat16"])
def test_group_norm_of_a_row_without_frames_is_its_bias_and_other_rows_keep_their_bits(kind: str):
    with jax.enable_x64(kind == "float64"):
        x = jnp.asarray(np.random.default_rng(0).normal(0, 3, (2, 40, 8)), kind).astype(jnp.promote_types(kind, jnp.float32))
        scale, bias, rounded = jnp.linspace(0.5, 2, 8, dtype=x.dtype), jnp.linspace(-1, 1, 8, dtype=x.dtype), kind == "bfloat16"
        y = network.group_norm(x, jnp.array([30, 0]), scale, bias, rounded)
        moments = network._moments_at_once if rounded else network._moments
        mean, variance = moments(x[:1], network.valid(jnp.array([30]), 40)[:, :, None], jnp.full((1, 1, 1), 30, x.dtype))
        np.testing.assert_array_equal(y[:1], (x[:1] - mean) * (jax.lax.rsqrt(variance + network.EPSILON) * scale) + bias)
        np.testing.assert_array_equal(y[1], np.broadcast_to(bias, (40, 8)))


@pytest.mark.parametrize(("kind", "bound"), [("float32", 1e-4), ("bfloat16", 0.05)])
def test_a_row_without_frames_leaves_the_gradients_to_the_others(kind: str, bound: float):
    # As in the last batch of an epoch, which is short, when the kernels of the twelve layers of context have grown.
    layers = tuple((16, kernel, 1) for _, kernel, _ in LARGE.conv_aggregator_layers)
    config = dataclasses.replace(LARGE, conv_feature_layers=LITTLE.conv_feature_layers, conv_aggregator_layers=layers)
    model, params = wav2vec.Wav2Vec(config, jnp.dtype(kind)), wav2vec.random_params(config, 0)
    for name, layer in params.items():
        layer["kernel"] *= 100 if name.startswith("context") else 1

    @jax.jit
    @jax.grad
    def gradient(params: dict, waveforms: jax.Array, lengths: jax.Array) -> jax.Array:
        z, c, _ = model.apply({"params": params}, waveforms, lengths)
        return jnp.sin(z).sum() + jnp.sin(c).sum()

    waveforms = np.repeat(noise(1, 16_000), 2, axis=0)
    twice = dict(checkpoint.named_leaves(gradient(params, waveforms, np.array([16_000, 16_000]))))
    for name, leaf in checkpoint.named_leaves(gradient(params, waveforms, np.array([16_000, 0]))):
        assert np.isfinite(leaf).all(), name
        assert np.linalg.norm(2 * leaf - twice[name]) <= bound * np.linalg.norm(twice[name]), name


@pytest.mark.parametrize("mean", [0.0, 1.0, 30.0])
def test_statistics_in_one_pass_lose_less_than_rounding_has_lost(mean: float):
    frames, wide = jnp.array([40, 7]), np.random.default_rng(0).normal(mean, 1, (2, 50, 64))
    rounded = jnp.asarray(wide, jnp.bfloat16)
    at_once = network.group_norm(rounded.astype(jnp.float32), frames, 1, 0, rounded=True)
    mask = np.arange(50) < frames[:, None]
    for row in range(2):
        x = np.asarray(rounded, np.float64)[row][mask[row]]
        exact, unrounded = (x - x.mean()) / x.std(), wide[row][mask[row]]
        lost = np.abs(exact - (unrounded - unrounded.mean()) / unrounded.std()).max()
        assert np.abs(at_once[row][mask[row]] - exact).max() < 0.02 * lost
    np.testing.assert_array_equal(network.group_norm(jnp.full((1, 3, 4), 5.0), jnp.array([3]), 1, 0, rounded=True), 0)


@pytest.mark.parametrize(("samples", "kernel", "stride"), [(10, 10, 5), (464, 10, 5), (465, 10, 5), (300, 8, 3)])
def test_a_waveform_convolved_by_one_product(samples: int, kernel: int, stride: int):
    generator = np.random.default_rng(0)
    x, weights = generator.normal(size=(2, samples, 1)), generator.normal(size=(kernel, 1, 7))
    exact = [[np.correlate(row[:, 0], weights[:, 0, d])[::stride] for d in range(7)] for row in x]
    x, weights = (jnp.asarray(of, jnp.float32) for of in (x, weights))
    y = network.convolve_one_channel(x, weights, stride)
    np.testing.assert_allclose(y, np.swapaxes(exact, 1, 2), atol=1e-5)
    np.testing.assert_allclose(y, network.convolve(x, weights, stride), atol=1e-5)


def test_arrays_of_jax_give_what_numpys_give(encoder: wav2vec.Encoder):
    for rows in (2, 3):  # that the devices divide evenly, and that they do not
        waveforms, lengths = noise(rows, 4_000), np.full(rows, 3_900)
        for one, two in zip(encoder(waveforms, lengths), encoder(jnp.asarray(waveforms), lengths), strict=True):
            np.testing.assert_array_equal(one, two)


def test_what_lies_beyond_a_length_changes_no_bit(encoder: wav2vec.Encoder):
    waveforms, lengths = noise(3, 8_000), np.array([8_000, 5_000, 3_000])
    clean = encoder(np.where(np.arange(8_000) < lengths[:, None], waveforms, 0), lengths)
    for garbage in (waveforms, np.where(np.arange(8_000) < lengths[:, None], waveforms, np.nan)):
        for one, two in zip(clean, encoder(garbage, lengths), strict=True):
            np.testing.assert_array_equal(one, two)


def test_members_do_not_see_each_other(encoder: wav2vec.Encoder):
    waveforms, lengths = noise(4, 6_000), np.array([6_000, 4_000, 6_000, 465])
    z, c, frames = encoder(waveforms, lengths)
    order = np.array([2, 3, 0, 1])
    for one, two in zip((z, c, frames), encoder(waveforms[order], lengths[order]), strict=True):
        np.testing.assert_allclose(one[order], two, rtol=0, atol=1e-5)
    spoilt, others = waveforms.copy(), np.array([0, 2, 3])
    spoilt[1] = np.nan
    for one, two in zip((z, c), encoder(spoilt, lengths)[:2], strict=True):
        np.testing.assert_array_equal(one[others], two[others])
        assert np.isnan(two[1]).any()


def test_context_looks_back_only(encoder: wav2vec.Encoder):
    # Causality up to the norms: with the same statistics an end that is reversed in time leaves the first frames alone.
    config = NANO
    params = wav2vec.random_params(config, 0)
    model = wav2vec.Wav2Vec(config)
    x = jnp.asarray(noise(1, 16_000))
    gradient = jax.grad(lambda x: model.apply({"params": params}, x, jnp.array([16_000]))[1][0, 30].sum())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(network, "group_norm", lambda x, frames, scale, bias, rounded: x)  # what couples all frames
        touched = np.flatnonzero(np.asarray(gradient(x)[0]))
    first, last = touched.min(), touched.max()
    assert last == 30 * config.stride + config.receptive_field[0] - 1
    assert first == max(0, last + 1 - config.receptive_field[1])


def test_lengths_that_give_no_frames(encoder: wav2vec.Encoder):
    z, c, frames = encoder(noise(3, 300), np.array([300, 0, 299]))  # all below the receptive field, the array as well
    assert frames.tolist() == [0, 0, 0]
    assert not z.any()
    assert not c.any()
    z, c, frames = encoder(noise(2, 1_000), np.array([464, 465]))
    assert frames.tolist() == [0, 1]
    assert not z[0].any()
    assert np.isfinite(z).all()
    with pytest.raises(CallError, match="lengths from 5 to 301 for waveforms of 300 samples"):
        encoder(noise(2, 300), np.array([5, 301]))


def test_z_is_compressed_and_c_is_not(encoder: wav2vec.Encoder):
    z, c, frames = encoder(noise(1, 16_000), np.array([16_000]))
    assert z.shape == (1, 98, 128)
    assert c.shape == (1, 98, 128)
    assert frames.tolist() == [98]
    assert z.min() >= 0  # log(1 + ReLU)
    assert z.dtype == c.dtype == np.float32


def test_bfloat16_is_near(encoder: wav2vec.Encoder):
    # As on an accelerator: products in bfloat16, norms in float32.
    params = wav2vec.random_params(NANO, 0)
    waveforms, lengths = noise(2, 16_000), np.array([16_000, 9_000])
    z, c, _ = wav2vec.Wav2Vec(NANO, jnp.bfloat16).apply({"params": params}, jnp.asarray(waveforms), jnp.asarray(lengths))
    exact_z, exact_c, _ = encoder(waveforms, lengths)
    assert np.abs(z - exact_z).max() < 0.1
    assert np.abs(c - exact_c).mean() < 0.02 * np.abs(exact_c).mean() + 0.02
    with pytest.raises(CallError, match="bfloat16 is for GPU and TPU"):
        wav2vec.load("random-nano:0", "bfloat16")


def test_random_weights_are_torchs_and_named_by_their_seed():
    one, two, other = (wav2vec.random_params(NANO, seed) for seed in (0, 0, 1))
    assert checkpoint.tree_digest(one) == checkpoint.tree_digest(two) != checkpoint.tree_digest(other)
    kernel, bias = one["context_3"]["kernel"], one["context_3"]["kernel_bias"]
    bound = (5 * 128) ** -0.5  # kernel 5, 128 channels
    assert 0.99 * bound < np.abs(kernel).max() <= bound
    assert np.abs(bias).max() <= bound
    assert kernel.std() == pytest.approx(bound / np.sqrt(3), rel=0.01)
    assert (one["encoder_0"]["scale"] == 1).all()
    assert (one["encoder_0"]["bias"] == 0).all()
    assert wav2vec.identify("random-base:7") == (BASE, wav2vec.encoder_digest(BASE, wav2vec.random_params(BASE, 7)), True)
    with pytest.raises(CallError, match=r"random-huge:0: random weights are made for large, base, nano"):
        wav2vec.load("random-huge:0")


def test_a_checkpoint_is_what_was_saved(tmp_path: Path):
    params = wav2vec.random_params(NANO, 3)
    digest = wav2vec.encoder_digest(NANO, params)
    head = {wav2vec.PREDICTIONS: {"kernel": np.zeros((12, 128, 128), np.float32), "bias": np.zeros(128, np.float32)}}
    wav2vec.save(tmp_path / "w", NANO, params | head, {"from": "nowhere"})
    assert checkpoint.about(tmp_path / "w", wav2vec.KIND)["from"] == "nowhere"
    assert wav2vec.identify(tmp_path / "w") == (NANO, digest, False)
    waveforms, lengths = noise(1, 4_000), np.array([4_000])
    for one, two in zip(
        wav2vec.load(tmp_path / "w")(waveforms, lengths), wav2vec.load("random-nano:3")(waveforms, lengths), strict=True
    ):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize(("dtype", "head", "times"), [("float32", False, 1), ("float16", False, 2), ("float32", True, 2)])
def test_weights_are_hashed_again_only_where_they_are_not_what_was_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, head: bool, times: int
):
    params = wav2vec.random_params(LITTLE, 3)
    kept = {wav2vec.PREDICTIONS: {"kernel": np.ones((2, 3), np.float32)}} if head else {}
    wav2vec.save(tmp_path / "w", LITTLE, params | kept, {}, dtype)
    hashed, digest = [], checkpoint.tree_digest
    monkeypatch.setattr(checkpoint, "tree_digest", lambda tree: hashed.append(digest(tree)) or hashed[-1])
    encoder = wav2vec.load(tmp_path / "w")
    assert len(hashed) == times
    rounded = jax.tree.map(lambda leaf: leaf.astype(dtype).astype(np.float32), params)
    assert encoder.digest == wav2vec.encoder_digest(LITTLE, rounded) == wav2vec.identify(tmp_path / "w")[1]


def test_a_weight_of_another_type_is_hashed_as_float32(tmp_path: Path):
    params = wav2vec.random_params(LITTLE, 3)
    params["encoder_0"]["scale"] = params["encoder_0"]["scale"].astype(np.float16)  # of one leaf alone
    of_float32 = wav2vec.encoder_digest(LITTLE, jax.tree.map(lambda leaf: leaf.astype(np.float32), params))
    about = {"config": LITTLE.to_json(), "encoder_digest": of_float32}
    checkpoint.save(tmp_path / "w", wav2vec.KIND, params, about)
    assert wav2vec.load(tmp_path / "w").digest == of_float32


def test_a_flag_that_was_changed_by_hand_is_seen(tmp_path: Path):
    wav2vec.save(tmp_path / "w", NANO, wav2vec.random_params(NANO, 0), {})
    note = tmp_path / "w" / "about" / "metadata"
    note.write_text(note.read_text().replace('"log_compression": true', '"log_compression": false'))
    with pytest.raises(WorkError, match="its configuration is not the one that its weights were written with"):
        wav2vec.load(tmp_path / "w")


def test_a_batch_is_shared_out_among_devices(tmp_path: Path):
    code = (
        "import numpy as np, jax\n"
        "from jaxser import wav2vec\n"
        "waveforms = np.random.default_rng(0).normal(0, 0.1, (6, 6000)).astype(np.float32)\n"
        "z, c, frames = wav2vec.load('random-nano:0')(waveforms, np.array([6000, 5000, 4000, 3000, 465, 100]))\n"
        f"np.savez(r'{tmp_path}' + f'/{{jax.local_device_count()}}.npz', z=z, c=c, frames=frames)\n"
    )
    for count in (1, 4):
        environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(count)}
        subprocess.run([sys.executable, "-c", code], check=True, env=environment, timeout=300)
    one, four = (np.load(tmp_path / f"{count}.npz") for count in (1, 4))
    for name in ("z", "c", "frames"):
        assert one[name].shape == four[name].shape
        np.testing.assert_allclose(one[name], four[name], rtol=0, atol=1e-5)
