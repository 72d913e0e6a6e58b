"""python -m benchmarks.extract: features a second, ours beside fairseq's own code and the masked torch twin.

Part one, 5 s clips in batches: the model alone. Part two, a ragged corpus with IEMOCAP's lengths, from files to files:
ours is the engine behind `python -m jaxser.extract`, fairseq's is its habit of one file at a time.
"""

import csv
import sys
import tempfile
from argparse import Namespace
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import jax
import numpy as np
import soundfile
import torch

from benchmarks import torch_twins
from benchmarks.systems import (
    CLIP_SECONDS,
    SYSTEMS,
    Dtype,
    ceiling,
    clip_call,
    errors_against_float64,
    gflop_per_second,
)
from benchmarks.timing import (
    OtherLoad,
    Timing,
    conclude,
    machine,
    peak_mib,
    ratio,
    run_benchmark,
    say,
    stamp,
    table,
    take_turns,
)
from convert.wav2vec import Call
from convert.wav2vec import main as convert
from jaxser import audio, corpora, extract
from jaxser.architecture import LARGE

BATCHES = (1, 4, 8)


@dataclass(frozen=True)
class Config:
    """Time feature extraction. Takes some ten minutes on two cores; nothing else should run meanwhile."""

    rounds: int = 7
    """How often each system has its turn with clips."""
    ragged_rounds: int = 3
    """How often with the ragged corpus."""
    ragged_files: int = 160
    dtype: Dtype = "float32"
    """bfloat16: on a GPU, for both sides."""
    json: Path | None = None
    """Write everything measured to this file as well."""
    only: str | None = None
    """`SYSTEM:BATCH`: two calls of one system and nothing else; this is how peak memory is taken."""


def main(config: Config) -> None:
    """The whole benchmark."""
    if config.only:
        system, _, batch = config.only.rpartition(":")
        model = None if system.startswith("jaxser") else torch_twins.fairseq_model()[0]
        call = clip_call(system, int(batch), model, config.dtype)
        call()
        call()
        return
    model, args = torch_twins.fairseq_model()
    found = {"machine": machine(), "command": " ".join(["python -m benchmarks.extract", *sys.argv[1:]])}
    watch = OtherLoad()
    ceilings = ceiling(config.dtype)
    say(f"matrix-product ceiling, {config.dtype}: " + ", ".join(f"{k} {v:.0f} GFLOP/s" for k, v in ceilings.items()))
    timings = time_clips(config, model)
    ragged, seconds = time_ragged(config, model, args)
    load = watch.share()
    errors = errors_against_float64(model, config.dtype)
    rows = [row_of(key, timing, config.dtype, errors, ceilings) for key, timing in timings.items()]
    for name, timing in ragged.items():
        speed = timing.per_second(seconds)
        rows.append(
            {
                "name": "ragged",
                "system": name,
                "dtype": config.dtype,
                "batch": None,
                "audio_seconds_per_second": speed["median"],
            }
            | {
                "low": speed["low"],
                "high": speed["high"],
                "compile_seconds": timing.compiling,
                "peak_mib": None,
                "max_error": None,
            }
        )
    ratios = ratios_of(timings, ragged)
    found |= {
        "load": load,
        "ceiling_gflops": ceilings,
        "nominal_gflop_per_audio_second": gflop_per_second(LARGE),
        "rows": rows,
        "ratios": {name: value["median"] for name, value in ratios.items()},
        "ratio_spreads": ratios,
    }
    conclude(found, report(found), config.json)


def time_clips(config: Config, model: torch.nn.Module) -> dict[tuple[str, int], Timing]:
    """Every system at every batch size, in turn."""
    names = [name for name in SYSTEMS if name != "jaxser direct" or jax.default_backend() == "cpu"]
    calls = {(name, batch): clip_call(name, batch, model, config.dtype) for batch in BATCHES for name in names}
    say(f"clips: {len(calls)} systems and batch sizes, {config.rounds} rounds")
    return take_turns(calls, config.rounds)


def time_ragged(config: Config, model: torch.nn.Module, args: Namespace) -> tuple[dict[str, Timing], float]:
    """From a folder of files to features on disk; also the seconds of audio that are used."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = write_ragged_corpus(folder, config.ragged_files)
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
                precision=config.dtype,
            )  # fmt: skip
            extract.extract(corpora.read("csv", flags.root, "all"), extract.sound_extractor(flags), cache)

        def fairseqs() -> None:
            out = folder / f"out{next(caches)}"
            out.mkdir()
            device = next(model.parameters())
            with torch.inference_mode():
                for path in paths:
                    source = torch.from_numpy(audio.load(path))[None].to(device)
                    c = model.feature_aggregator(model.feature_extractor(source))
                    np.save(out / f"{path.stem}.npy", c[0].T.float().cpu().numpy())

        say(f"ragged: {len(paths)} files, {seconds:.0f} s of audio after cropping, {config.ragged_rounds} rounds")
        return take_turns({"jaxser": ours, "fairseq": fairseqs}, config.ragged_rounds), seconds


def write_ragged_corpus(folder: Path, files: int) -> list[Path]:
    """Files with IEMOCAP's lengths: log-normal with its median of 3.58 s and mean of 4.55 s, from 0.585 to 34.14 s."""
    generator = np.random.default_rng(0)
    lengths = np.clip(3.58 * np.exp((2 * np.log(4.55 / 3.58)) ** 0.5 * generator.normal(size=files)), 0.585, 34.14)
    paths = []
    for i, seconds in enumerate(lengths):
        path = folder / f"{i:05}.wav"
        soundfile.write(path, generator.normal(0, 0.1, round(seconds * audio.SAMPLE_RATE)), audio.SAMPLE_RATE, "PCM_16")
        paths.append(path)
    with (folder / "corpus.csv").open("w", newline="") as file:
        lines = [(path.name, "ab"[i % 2], f"s{i % 10}") for i, path in enumerate(paths)]
        csv.writer(file).writerows([("path", "label", "speaker"), *lines])
    return paths


def row_of(
    key: tuple[str, int], timing: Timing, dtype: Dtype, errors: dict[str, float], ceilings: dict[str, float]
) -> dict[str, Any]:
    """One line of the table and of the JSON."""
    system, batch = key
    speed = timing.per_second(batch * CLIP_SECONDS)
    work = speed["median"] * gflop_per_second(LARGE)
    return {
        "name": "clips",
        "system": system,
        "dtype": dtype,
        "batch": batch,
        "audio_seconds_per_second": speed["median"],
        "low": speed["low"],
        "high": speed["high"],
        "gflops": work,
        "share_of_ceiling": work / max(ceilings.values()),
        "compile_seconds": timing.compiling,
        "peak_mib": peak_mib("benchmarks.extract", "--only", f"{system}:{batch}", "--dtype", dtype),
        "max_error": errors.get(system.removesuffix(" compiled")),
    }


def ratios_of(timings: dict[tuple[str, int], Timing], ragged: dict[str, Timing]) -> dict[str, dict[str, float]]:
    """Ours over theirs, each at its best batch size."""

    def best(system: str) -> tuple[str, int]:
        return min((key for key in timings if key[0] == system), key=lambda key: timings[key].median / key[1])

    ours, found = best("jaxser"), {}
    for system in SYSTEMS[2:]:
        theirs = best(system)
        name = "jax_over_" + system.replace(" ", "_")
        found[name] = ratio(timings[theirs], timings[ours], theirs[1], ours[1])
    return found | {"ragged_jax_over_fairseq": ratio(ragged["fairseq"], ragged["jaxser"])}


def report(found: dict[str, Any]) -> str:
    """Everything as Markdown."""

    def number(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    header = [
        "what",
        "system",
        "batch",
        "audio s/s",
        "slowest",
        "fastest",
        "GFLOP/s",
        "of ceiling",
        "compile s",
        "peak MiB",
        "error",
    ]
    rows = [
        [
            row["name"],
            row["system"],
            str(row["batch"] or ""),
            *(f"{row[name]:.1f}" for name in ("audio_seconds_per_second", "low", "high")),
            number(row.get("gflops"), ".0f"),
            number(row.get("share_of_ceiling"), ".0%"),
            number(row["compile_seconds"], ".1f"),
            number(row["peak_mib"], ".0f"),
            number(row["max_error"], ".1e"),
        ]
        for row in found["rows"]
    ]
    ratios = [
        f"{name}: {value['median']:.2f} ({value['low']:.2f} to {value['high']:.2f})"
        for name, value in found["ratio_spreads"].items()
    ]
    lines = [
        *stamp(found),
        f"ceiling {max(found['ceiling_gflops'].values()):.0f} GFLOP/s; "
        f"nominal work {found['nominal_gflop_per_audio_second']:.2f} GFLOP a second of audio",
        "",
        table(header, rows),
        "",
        *ratios,
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    run_benchmark("benchmarks.extract", Config, main)
