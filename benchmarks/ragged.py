"""A ragged corpus with the lengths of IEMOCAP: ours and fairseq, file to file; on a GPU also ours and the compiled twin."""

import csv
import tempfile
from argparse import Namespace
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np
import soundfile
import torch

from benchmarks import torch_twins
from benchmarks.lengths import as_iemocap
from benchmarks.systems import Dtype, our_params
from benchmarks.timing import Timing, say, take_turns
from convert.wav2vec import Call
from convert.wav2vec import main as convert
from jaxser import audio, corpora, extract, extract_wav2vec, wav2vec
from jaxser.architecture import LARGE


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

        def ours() -> None:
            cache = folder / f"cache{next(caches)}"
            flags = extract.Config(
                corpus="csv", root=folder / "corpus.csv", features="wav2vec", weights=str(folder / "weights"), cache=cache,
                precision=dtype,
            )  # fmt: skip
            extract.extract(corpora.read("csv", flags.root, "all"), extract.sound_extractor(flags), cache)

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


def batch_calls(waveforms: list[np.ndarray], model: torch.nn.Module, dtype: Dtype) -> dict[str, Callable[[], None]]:
    """Batches as extraction makes them, through ours and through the compiled twin; the features come back to the host while
    the device computes the next batch."""
    batches = [
        (batch, np.where(lengths, lengths, batch.shape[1]))  # the twin divides by the frames of a row, also of an empty one
        for _, batch, lengths in extract_wav2vec.padded_batches(
            waveforms, extract_wav2vec.ACCELERATOR, extract_wav2vec.REFERENCE
        )
    ]
    encoder = wav2vec.make_encoder(LARGE, our_params(model), dtype)
    twin = torch.compile(torch_twins.MaskedTwin(model), dynamic=True)

    def ours() -> None:
        before = None
        for batch in batches:
            _, c, _ = encoder(*batch)
            c.copy_to_host_async()
            if before is not None:
                np.asarray(before)
            before = c
        np.asarray(before)

    def twins() -> None:
        before, torch.backends.cudnn.benchmark = None, True  # a few lengths, which come again
        with torch.inference_mode():
            for waveforms, lengths in batches:
                source = torch.from_numpy(waveforms).to("cuda", getattr(torch, dtype))
                _, c = twin(source, torch.from_numpy(lengths).to("cuda"))
                host = torch.empty(c.shape, pin_memory=True)
                host.copy_(c.float(), non_blocking=True)
                if before is not None:
                    before.synchronize()
                before = torch.cuda.Event()
                before.record()
            before.synchronize()

    return {"jaxser": ours, "masked twin compiled": twins}


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
