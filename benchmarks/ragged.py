"""A ragged corpus with the lengths of IEMOCAP: ours and fairseq, file to file; on a GPU also ours and the compiled twin."""

import csv
import tempfile
from argparse import Namespace
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from functools import partial
from io import StringIO
from pathlib import Path

import jax
import numpy as np
import soundfile
import torch

from benchmarks import torch_twins
from benchmarks.lengths import as_iemocap
from benchmarks.systems import CHANNELS_LAST, Dtype, our_params
from benchmarks.timing import Timing, say, take_turns
from convert.wav2vec import Call
from convert.wav2vec import main as convert
from jaxser import audio, corpora, extract, extract_wav2vec, wav2vec
from jaxser.architecture import LARGE

PINNED = "pinned_host"
"""jax's name of memory of the host that a GPU copies to by itself, several times as fast as to ordinary memory."""

Batch = tuple[np.ndarray, np.ndarray]
"""Waveforms f32[b, s] and how many samples of each count, i64[b]."""


def time_ragged(
    files: int, rounds: int, model: torch.nn.Module, args: Namespace, dtype: Dtype
) -> dict[tuple[str, str], tuple[Timing, float]]:
    """Of files and of batches, by system, the time and the seconds of audio that are used; fairseq's model has these `args`."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = write_ragged_corpus(folder, files)
        content = {"args": Namespace(**{k: v for k, v in vars(args).items() if k not in ("activation", "vq_type", "infonce")})}
        torch.save(content | {"model": {k: v.float().cpu() for k, v in model.state_dict().items()}}, folder / "weights.pt")
        with redirect_stdout(StringIO()):
            convert(Call(folder / "weights.pt", str(folder / "weights")))
        seconds = sum(len(audio.load(path)) for path in paths) / audio.SAMPLE_RATE
        caches = iter(range(1000))

        weights, cache = str(folder / "weights"), folder / "cache"
        flags = extract.Config(
            corpus="csv", root=folder / "corpus.csv", features="wav2vec", weights=weights, cache=cache, precision=dtype
        )
        extractor = extract.sound_extractor(flags, keep=True)  # the first round reads the weights; theirs are read by now

        def ours() -> None:
            (cache / "digests.json").unlink(missing_ok=True)  # as if it had never seen these files
            extract.extract(corpora.read("csv", flags.root, "all"), extractor, folder / f"cache{next(caches)}")

        def fairseqs() -> None:
            out = folder / f"out{next(caches)}"
            out.mkdir()
            torch.backends.cudnn.benchmark = False  # its search would take longer than the files, each of another length
            device = next(model.parameters())  # and type: where clips have put it
            with torch.inference_mode():
                for path in paths:
                    source = torch.from_numpy(audio.load(path))[None].to(device)
                    c = model.feature_aggregator(model.feature_extractor(source))
                    np.save(out / f"{path.stem}.npy", c[0].T.float().cpu().numpy())

        say(f"ragged: {len(paths)} files, {seconds:.0f} s of audio after cropping, {rounds} rounds")
        found = {("ragged files", name): call for name, call in {"jaxser": ours, "fairseq": fairseqs}.items()}
        if torch.cuda.is_available():
            waveforms = [audio.load(path, audio.MAX_SECONDS) for path in paths]
            found |= {("ragged batches", name): call for name, call in batch_calls(waveforms, model, dtype).items()}
        return {key: (timing, seconds) for key, timing in take_turns(found, rounds).items()}


def batch_calls(waveforms: list[np.ndarray], model: torch.nn.Module, dtype: Dtype) -> dict[str, Callable[[], object]]:
    """Batches as extraction makes them, through ours and through the compiled twin; the features come back to the host while
    the device computes the next batch. Where the device has pinned memory ours is tried with it too."""
    batches = [
        (batch, np.where(lengths, lengths, batch.shape[1]))  # the twin divides by the frames of a row, also of an empty one
        for _, batch, lengths in extract_wav2vec.padded_batches(
            waveforms, extract_wav2vec.ACCELERATOR, extract_wav2vec.REFERENCE
        )
    ]
    encoder = wav2vec.make_encoder(LARGE, our_params(model), dtype)
    torch._dynamo.config.recompile_limit = 64  # each padded length is a program of its own; after eight torch would give up
    twin = torch.compile(torch_twins.MaskedTwin(model, channels_last=True), dynamic=False)
    ways = {"jaxser": partial(features_of, encoder, batches)}
    if PINNED in {memory.kind for memory in jax.local_devices()[0].addressable_memories()}:
        ways["jaxser pinned"] = partial(features_of, encoder, batches, PINNED)
    ways[CHANNELS_LAST] = partial(twins_features, twin, batches, getattr(torch, dtype))
    return {name: lambda way=way: deque(way(), maxlen=0) for name, way in ways.items()}


def features_of(encoder: wav2vec.Encoder, batches: Sequence[Batch], memory: str | None = None) -> Iterator[np.ndarray]:
    """Ours: c of each batch, f32[b, t, d], one batch late. With `memory` they are sent to that kind of it first."""
    before = None
    for batch in batches:
        _, c, _ = encoder(*batch)
        if memory:
            c = jax.device_put(c, c.sharding.with_memory_kind(memory))
        else:
            c.copy_to_host_async()
        if before is not None:
            yield np.asarray(before)
        before = c
    yield np.asarray(before)


@torch.inference_mode()
def twins_features(twin: torch.nn.Module, batches: Sequence[Batch], dtype: torch.dtype) -> Iterator[np.ndarray]:
    """The twin's: c of each batch, f32[b, d, t], one batch late. Both ways go through pinned memory and have a stream of
    their own; a batch is on the GPU before its turn."""
    torch.backends.cudnn.benchmark = True  # a few lengths, which come again
    computing, copying = torch.cuda.current_stream(), torch.cuda.Stream()

    def sent(waveforms: np.ndarray, lengths: np.ndarray) -> tuple[list[torch.Tensor], torch.cuda.Event]:
        pinned = torch.empty(waveforms.shape, dtype=dtype, pin_memory=True).copy_(torch.from_numpy(waveforms))
        with torch.cuda.stream(copying):
            there = [x.to("cuda", non_blocking=True) for x in (pinned, torch.from_numpy(lengths).pin_memory())]
        return there, copying.record_event()

    before, (there, arrived) = None, sent(*batches[0])
    for after in [*batches[1:], None]:
        computing.wait_event(arrived)
        for x in there:
            x.record_stream(computing)  # so that nothing takes its place before the twin has read it
        c = twin(*there)[1].float()
        computed = computing.record_event()
        if after:  # before the way back, which waits for what is computed
            there, arrived = sent(*after)
        copying.wait_event(computed)
        with torch.cuda.stream(copying):
            host = torch.empty(c.shape, pin_memory=True).copy_(c, non_blocking=True)
        c.record_stream(copying)
        if before:
            yield fetched(*before)
        before = host, copying.record_event()
    yield fetched(*before)


def fetched(host: torch.Tensor, arrived: torch.cuda.Event) -> np.ndarray:
    """What was on its way, when it is there."""
    arrived.synchronize()
    return host.numpy()


def write_ragged_corpus(folder: Path, files: int) -> list[Path]:
    """Files of noise with IEMOCAP's lengths, and a CSV of them."""
    generator = np.random.default_rng(0)
    paths = []
    for i, seconds in enumerate(as_iemocap(generator, files)):
        path = folder / f"{i:05}.wav"
        soundfile.write(path, generator.normal(0, 0.1, round(seconds * audio.SAMPLE_RATE)), audio.SAMPLE_RATE, "PCM_16")
        paths.append(path)
    with (folder / "corpus.csv").open("w", newline="") as file:
        lines = [(path.name, "ab"[i % 2], f"s{i % 10}") for i, path in enumerate(paths)]
        csv.writer(file).writerows([("path", "label", "speaker"), *lines])
    return paths
