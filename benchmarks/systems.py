"""The systems that are timed: a batch of 5 s clips through jaxser, through fairseq's own code, through the masked twin."""

import os
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import torch

from benchmarks import torch_twins
from benchmarks.timing import take_turns
from convert.wav2vec import port_wav2vec
from jaxser import audio, devices, wav2vec
from jaxser.architecture import LARGE, Architecture

CLIP_SECONDS = 5
CHANNELS_LAST = "masked twin channels-last compiled"
SYSTEMS = ("jaxser", "jaxser direct", "fairseq", "fairseq compiled", "masked twin", "masked twin compiled", CHANNELS_LAST)
Dtype = Literal["float32", "bfloat16"]


def side_by_side(tf32: bool = False) -> None:
    """Before anything else of jax and torch: what both have of a GPU. Half its memory is torch's, of which jax would take three
    quarters (who states a share is heeded); float32 is float32 on both sides, or `tf32`, as jax has it there where a product
    states no precision."""
    if not {"XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"} & os.environ.keys():
        os.environ["XLA_PYTHON_CLIENT_MEM_FRACTION"] = "0.5"
    torch.backends.cudnn.benchmark = True  # torch at its best
    torch.backends.cudnn.allow_tf32 = tf32
    if torch.cuda.is_available():  # on a CPU there is one way to multiply
        torch.set_float32_matmul_precision("high" if tf32 else "highest")


def underway() -> int:
    """Batches, or products, that a call hands over before it waits: on a CPU one; an accelerator would otherwise stand still
    while the next is handed over, as it does not in extraction."""
    return 1 if jax.default_backend() == "cpu" else 10


def clips(batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise at the level of speech, f32[batch, 80000], and its lengths."""
    samples = CLIP_SECONDS * audio.SAMPLE_RATE
    waveforms = np.random.default_rng(batch).normal(0, 0.1, (batch, samples)).astype(np.float32)
    return waveforms, np.full(batch, samples)


def our_params(model: torch.nn.Module | None) -> dict[str, Any]:
    """The torch model's weights as ours; any weights where there is no model."""
    if model is None:
        return wav2vec.random_params(LARGE, 0)
    params = port_wav2vec({name: tensor.float().cpu().numpy() for name, tensor in model.state_dict().items()}, LARGE)
    return {name: value for name, value in params.items() if name != wav2vec.PREDICTIONS}


def clip_call(system: str, batch: int, model: torch.nn.Module | None, dtype: Dtype) -> Callable[[], Any]:
    """A function that runs a batch of clips through one system, `underway()` times, and returns z and c when they are there."""
    waveforms, lengths = clips(batch)
    if system.startswith("jaxser"):
        encoder = wav2vec.make_encoder(LARGE, our_params(model), dtype)
        if system == "jaxser direct":
            plain = wav2vec.Wav2Vec(LARGE, jnp.dtype(dtype))
            params = devices.on_all(our_params(model), encoder.mesh)
            encoder = wav2vec.Encoder(LARGE, params, "", dtype, plain, encoder.mesh)
        placed = waveforms if jax.default_backend() == "cpu" else jax.device_put(waveforms)  # as torch's are

        def ours() -> Any:
            for _ in range(underway()):
                out = encoder(placed, lengths)[:2]
            return jax.block_until_ready(out)

        return ours
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = model.to(device, getattr(torch, dtype))
    source = torch.from_numpy(waveforms).to(device, getattr(torch, dtype))
    counts = torch.from_numpy(lengths).to(device)
    if system.startswith("fairseq"):
        forward: Callable[..., Any] = lambda x: ((z := model.feature_extractor(x)), model.feature_aggregator(z))  # noqa: E731
        inputs: tuple[Any, ...] = (source,)
    else:
        forward, inputs = torch_twins.MaskedTwin(model, system == CHANNELS_LAST), (source, counts)
    if system.endswith("compiled"):
        forward = torch.compile(forward, dynamic=False)

    def call() -> Any:
        with torch.inference_mode():
            for _ in range(underway()):
                out = forward(*inputs)
            if device == "cuda":
                torch.cuda.synchronize()
        return out

    return call


def ceiling(dtype: Dtype, precision: jax.lax.Precision = jax.lax.Precision.HIGHEST) -> dict[str, float]:
    """GFLOP/s of a plain square matrix product, here and now: the most that any model could reach. `precision` is jax's;
    torch's is that of `side_by_side`."""
    size, times = 2048 if jax.default_backend() == "cpu" else 8192, underway()  # an accelerator wants a large one
    a = np.random.default_rng(0).normal(size=(size, size)).astype(np.float32)
    ours = jax.device_put(a).astype(dtype)
    theirs = torch.from_numpy(a).to("cuda" if torch.cuda.is_available() else "cpu", getattr(torch, dtype))
    product = jax.jit(partial(jnp.matmul, precision=precision))

    def jaxs() -> None:
        jax.block_until_ready([product(ours, ours) for _ in range(times)])

    def torchs() -> None:
        for _ in range(times):
            out = theirs @ theirs
        out[0, 0].item()

    timings = take_turns({"jax": jaxs, "torch": torchs}, 9)
    return {name: 2e-9 * times * size**3 / min(timing.rounds) for name, timing in timings.items()}


def errors_against_float64(
    calls: dict[tuple[str, int], Callable[[], Any]], batch: int, model: torch.nn.Module
) -> dict[str, float]:
    """The largest error of z and c over the first clip of a batch against the masked twin in float64, the weights being the
    same."""
    found = {}
    for (name, size), call in calls.items():
        if size == batch:
            out = [x[:1] for x in call()]
            transposed = name.startswith("jaxser")
            found[name] = [np.asarray(x) if transposed else x.float().cpu().numpy().swapaxes(1, 2) for x in out]
    waveforms, lengths = (x[:1] for x in clips(batch))
    twin = torch_twins.MaskedTwin(model.cpu().double())
    with torch.inference_mode():
        exact = [x.numpy().swapaxes(1, 2) for x in twin(torch.from_numpy(waveforms).double(), torch.from_numpy(lengths))]
    model.float()
    return {name: max(float(np.abs(a - b).max()) for a, b in zip(out, exact, strict=True)) for name, out in found.items()}


def gflop_per_second(config: Architecture) -> float:
    """Nominal work a second of audio, in GFLOP: two for each weight of a convolution and frame."""
    rate, work, channels = float(audio.SAMPLE_RATE), 0.0, 1
    for width, kernel, stride in config.conv_feature_layers + config.conv_aggregator_layers:
        rate /= stride
        work += 2e-9 * rate * width * kernel * channels
        channels = width
    return work
