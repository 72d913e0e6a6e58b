"""python -m benchmarks.extract: features a second, ours beside fairseq's own code and the masked torch twin.

Part one, 5 s clips in batches: the model alone. Part two, a ragged corpus with IEMOCAP's lengths, from files to files:
ours is the engine behind `python -m jaxser.extract`, fairseq's is its habit of one file at a time. Part three, on a GPU alone:
the same in batches, from arrays in the host's memory to arrays there. Each part finds compiled what those before it have
compiled: ours the 5 s of clips for files, and all lengths for batches. `compile s` is the rest.
"""

import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import torch

from benchmarks import torch_twins
from benchmarks.ragged import time_ragged
from benchmarks.systems import (
    CLIP_SECONDS,
    SYSTEMS,
    Dtype,
    ceiling,
    clip_call,
    errors_against_float64,
    gflop_per_second,
    side_by_side,
    underway,
)
from benchmarks.timing import (
    OtherLoad,
    Timing,
    conclude,
    keep,
    machine,
    peak_mib,
    ratio,
    run_benchmark,
    say,
    stamp,
    table,
    take_turns,
)
from jaxser import devices, extract_wav2vec
from jaxser.architecture import LARGE

BATCHES = {"cpu": (1, 4, 8)}
"""Clips in a batch, by platform; on all others as many as extraction takes at once."""


@dataclass(frozen=True)
class Config:
    """Time feature extraction. Takes some ten minutes on two cores; nothing else should run meanwhile.

    Ctrl-C ends it with the parts that are done, which --json has after each.
    """

    rounds: int = 7
    """How often each system has its turn with clips."""
    ragged_rounds: int = 3
    """How often with the ragged corpus."""
    ragged_files: int = 160
    """How many it has; 0: only clips."""
    systems: tuple[str, ...] = SYSTEMS
    """Which have their turn with clips."""
    dtype: Dtype = "float32"
    """bfloat16: on a GPU, for both sides."""
    json: Path | None = None
    """Write everything measured to this file as well."""
    only: str | None = None
    """`SYSTEM:BATCH`: two calls of one system and nothing else; this is how peak memory is taken."""


def main(config: Config) -> None:
    """The whole benchmark."""
    side_by_side()
    devices.each_core()  # as the command has them
    if config.only:
        system, _, batch = config.only.rpartition(":")
        model = None if system.startswith("jaxser") else torch_twins.fairseq_model()[0]
        call = clip_call(system, int(batch), model, config.dtype)
        call()
        call()
        return
    model, args = torch_twins.fairseq_model()
    # The same weights for all, rounded where they are.
    model.to("cuda" if torch.cuda.is_available() else "cpu", getattr(torch, config.dtype))
    found: dict[str, Any] = {"machine": machine(), "command": " ".join(["python -m benchmarks.extract", *sys.argv[1:]])}
    watch = OtherLoad()
    ceilings = ceiling(config.dtype)
    say(f"matrix-product ceiling, {config.dtype}: " + ", ".join(f"{k} {v:.0f} GFLOP/s" for k, v in ceilings.items()))
    found |= {"load": None, "ceiling_gflops": ceilings, "nominal_gflop_per_audio_second": gflop_per_second(LARGE)}
    found |= {"rows": [], **compared({}, {})}
    with suppress(KeyboardInterrupt):  # what is measured by then is told
        for part in measured(config, model, args, ceilings):
            found |= {**part, "load": watch.share()}
            keep(found, config.json)
    conclude(found, report(found), config.json)


def measured(config: Config, model: torch.nn.Module, args: Namespace, ceilings: dict[str, float]) -> Iterator[dict[str, Any]]:
    """What is known after each part: the table and the ratios; at last the table with errors, and peaks of memory."""
    calls = clip_calls(config, model)
    say(f"clips: {len(calls)} systems and batch sizes, {config.rounds} rounds")
    timings = take_turns(calls, config.rounds)
    clips = [row_of(key, timing, config.dtype, ceilings) for key, timing in timings.items()]
    yield {"rows": clips, **compared(timings, {})}
    files = []
    if config.ragged_files:
        ragged = time_ragged(config.ragged_files, config.ragged_rounds, model, args, config.dtype)
        files = [ragged_row(*key, timing, config.dtype, seconds) for key, (timing, seconds) in ragged.items()]
        yield {"rows": clips + files, **compared(timings, ragged)}
    errors = errors_against_float64(calls, min(batch for _, batch in calls), model)
    on_cpu = jax.default_backend() == "cpu"  # elsewhere the process's own memory says little
    for row in clips:
        only = f"{row['system']}:{row['batch']}"
        row["max_error"] = errors[row["system"]]
        row["peak_mib"] = peak_mib("benchmarks.extract", "--only", only, "--dtype", config.dtype) if on_cpu else None
    yield {"rows": clips + files}


def clip_calls(config: Config, model: torch.nn.Module) -> dict[tuple[str, int], Callable[[], Any]]:
    """Every system at every batch size."""
    platform = jax.default_backend()
    full = round(extract_wav2vec.ACCELERATOR.batch_seconds / CLIP_SECONDS)
    names = [name for name in config.systems if name != "jaxser direct" or platform == "cpu"]
    return {
        (name, batch): clip_call(name, batch, model, config.dtype) for batch in BATCHES.get(platform, (full,)) for name in names
    }


def row_of(key: tuple[str, int], timing: Timing, dtype: Dtype, ceilings: dict[str, float]) -> dict[str, Any]:
    """One line of the table and of the JSON, whose error and peak of memory come later."""
    system, batch = key
    speed = timing.per_second(underway() * batch * CLIP_SECONDS)
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
        "peak_mib": None,
        "max_error": None,
    }


def ragged_row(name: str, system: str, timing: Timing, dtype: Dtype, seconds: float) -> dict[str, Any]:
    """The same for what is not made of clips."""
    speed = timing.per_second(seconds)
    found = {"name": name, "system": system, "dtype": dtype, "batch": None, "audio_seconds_per_second": speed["median"]}
    found |= {"low": speed["low"], "high": speed["high"], "compile_seconds": timing.compiling}
    return found | {"peak_mib": None, "max_error": None}


def compared(
    timings: dict[tuple[str, int], Timing], ragged: dict[tuple[str, str], tuple[Timing, float]]
) -> dict[str, dict[str, Any]]:
    """Ours over theirs, each at its best batch size: the ratios, and the ratios with their spreads."""

    def best(system: str) -> tuple[str, int]:
        return min((key for key in timings if key[0] == system), key=lambda key: timings[key].median / key[1])

    found: dict[str, dict[str, float]] = {}
    for system in dict.fromkeys(name for name, _ in timings if not name.startswith("jaxser")):
        ours, theirs = best("jaxser"), best(system)
        name = "jax_over_" + system.replace(" ", "_")
        found[name] = ratio(timings[theirs], timings[ours], theirs[1], ours[1])
    for (name, system), (timing, _) in ragged.items():
        plain = ragged[name, "jaxser"][0]
        if not system.startswith("jaxser"):
            found[f"{name}_jax_over_{system}".replace(" ", "_")] = ratio(timing, plain)
        elif system != "jaxser":
            found[f"{name}_{system}_over_jaxser".replace(" ", "_")] = ratio(plain, timing)
    return {"ratios": {name: value["median"] for name, value in found.items()}, "ratio_spreads": found}


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
