"""python -m benchmarks.predict: labels a second beside `jaxser.extract`, and how long a cold start waits for the first label.

Whole processes, in turn: starting, reading, computing, writing. Models are trained for a moment only, since a label costs the
same however good it is.
"""

import contextlib
import io
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from benchmarks.timing import (
    OtherLoad,
    Timing,
    conclude,
    machine,
    ratio,
    run_benchmark,
    say,
    seconds_of,
    stamp,
    table,
    take_turns,
)
from jaxser import audio, cv, devices
from jaxser.errors import CallError

LABELS, SPEAKERS, TRAINED_ON = ("neutral", "happy", "sad", "angry"), 10, 80


@dataclass(frozen=True)
class Config:
    """Time `jaxser.predict` on a folder of clips and on a single one."""

    clips: int = 1_000
    seconds: float = 5.0
    """Length of each clip."""
    head: str = "mlp"
    weights: str = "nano"
    """Of wav2vec; the descriptors are measured too."""
    seeds: int = 3
    rounds: int = 3
    json: Path | None = None
    """Write everything measured to this file as well."""


def main(config: Config) -> None:
    """The whole benchmark."""
    if config.clips < TRAINED_ON:
        raise CallError(f"--clips {config.clips}: at least {TRAINED_ON}")
    found: dict[str, Any] = {"machine": machine(), "command": " ".join(["python -m benchmarks.predict", *sys.argv[1:]])}
    with tempfile.TemporaryDirectory() as passing:
        home = Path(passing)
        make(home / "clips", config)
        devices.prepare(home / "cache")
        models = {"lld": {"features": "lld"}, "wav2vec": {"features": "wav2vec", "weights": config.weights}}
        for name, flags in models.items():
            given = cv.Config(
                corpus="csv", root=home / "clips" / "some.csv", head=config.head, seeds=config.seeds, updates=20, **flags
            )
            with contextlib.redirect_stdout(io.StringIO()):
                cv.main(cv.dataclasses.replace(given, cache=home / "cache", out=home / name, save=True))
        watch = OtherLoad()
        timed = {name: measure(home, name, flags, config) for name, flags in models.items()}
        found |= {"load": watch.share(), "rows": [], "ratios": {}}
    for name, (turns, cold) in timed.items():
        amount = config.clips * config.seconds
        for what, timing in turns.items():
            speed = timing.per_second(amount)
            found["rows"].append({"name": name, "system": what, "audio_seconds_per_second": speed.pop("median"), **speed})
        found["rows"].append(
            {"name": name, "system": "first label", "seconds": statistics.median(cold), "low": min(cold), "high": max(cold)}
        )
        found["ratios"][f"{name}_predict_over_extract"] = ratio(turns["extract"], turns["predict"])
    conclude(found, report(found), config.json)


def make(folder: Path, config: Config) -> None:
    """Clips of noise, and CSV files of all of them and of some."""
    random = np.random.default_rng(0)
    folder.mkdir(parents=True)
    lines = ["path,label,speaker"]
    for i in range(config.clips):
        soundfile.write(
            folder / f"{i:05}.flac", random.normal(0, 0.05, round(config.seconds * audio.SAMPLE_RATE)), audio.SAMPLE_RATE
        )
        lines.append(f"{i:05}.flac,{LABELS[i % len(LABELS)]},s{i // len(LABELS) % SPEAKERS}")
    (folder / "all.csv").write_text("\n".join(lines) + "\n")
    (folder / "some.csv").write_text("\n".join(lines[: TRAINED_ON + 1]) + "\n")


def measure(home: Path, name: str, flags: dict[str, str], config: Config) -> tuple[dict[str, Timing], list[float]]:
    """The two commands on all clips in turn, into new folders, with programs compiled before; then the first label with nothing
    compiled."""
    fresh = iter(range(1_000))

    def extract() -> None:
        given = [word for flag, value in flags.items() for word in (f"--{flag}", value)]
        where = ("--root", home / "clips" / "all.csv", "--cache", home / f"cache-{name}-{next(fresh)}")
        _run("jaxser.extract", "--corpus", "csv", *where, *given, compiled=home / "compiled")

    def predict() -> None:
        out = home / f"{name}-{next(fresh)}.csv"
        _run("jaxser.predict", home / name, home / "clips", "--out", out, compiled=home / "compiled")
        assert out.read_text().count("\n") == config.clips + 1

    turns = take_turns({"extract": extract, "predict": predict}, config.rounds)
    say(f"{name}: extract {turns['extract'].median:.1f} s, predict {turns['predict'].median:.1f} s")
    one = home / "clips" / "00000.flac"
    cold = [
        seconds_of(lambda i=i: _run("jaxser.predict", home / name, one, "--cache", home / f"cold-{name}-{i}"))
        for i in range(config.rounds)
    ]
    say(f"{name}: first label after {statistics.median(cold):.1f} s")
    return turns, cold


def _run(module: str, *flags: object, compiled: Path | None = None) -> None:
    where = (
        {"JAX_COMPILATION_CACHE_DIR": str(compiled), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3"} if compiled else {}
    )
    line = [sys.executable, "-m", module, *map(str, flags)]
    subprocess.run(line, check=True, stdout=subprocess.DEVNULL, env=os.environ | where)


def report(found: dict[str, Any]) -> str:
    """Everything as Markdown."""
    rows = []
    for row in found["rows"]:
        speed = "audio_seconds_per_second" in row
        values = [row["audio_seconds_per_second" if speed else "seconds"], row["low"], row["high"]]
        unit = "s of audio a second" if speed else "seconds from a cold start"
        rows.append([row["name"], row["system"], unit, *(f"{value:.1f}" for value in values)])
    ratios = [f"- {name}: {r['median']:.2f} ({r['low']:.2f} to {r['high']:.2f})" for name, r in found["ratios"].items()]
    return "\n".join([*stamp(found), "", table(["features", "what", "unit", "median", "lowest", "highest"], rows), "", *ratios])


if __name__ == "__main__":
    run_benchmark("benchmarks.predict", Config, main)
