"""python -m benchmarks.paper: from raw audio to the paper's tables and figure, stage by stage, in one go from a cold start.

The corpus is one of your own (--corpus, --root), or noise in files of IEMOCAP's number, speakers, sessions and lengths.
"""

import csv
import dataclasses
import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
import soundfile

from benchmarks.lengths import IEMOCAP, as_iemocap
from benchmarks.timing import OtherLoad, conclude, machine, run_benchmark, say, stamp, table
from jaxser import audio, devices, extract, paper
from jaxser.command import command_line
from jaxser.errors import CallError

SPEAKERS, SESSIONS, LABELS = 10, 5, ("neutral", "happy", "sad", "angry")
WORDS = ("so", "I", "do", "not", "know", "what", "that", "was", "like", "well", "yeah", "go")


PLACES = ("root", "home", "json")
"""Flags that say where things lie on one machine, which is of no use on another."""


@dataclass(frozen=True)
class Config:
    """Time the way from audio files to Tables 1 and 2 and Figure 2. On two cores with all updates it takes over an hour."""

    corpus: Literal["made", "iemocap", "ravdess", "emodb"] = "made"
    """`made`: noise of IEMOCAP's size and lengths."""
    root: Path | None = None
    """The corpus folder; not for `made`."""
    utterances: int = IEMOCAP
    """Of the corpus that is made."""
    weights: str = "nano"
    precision: Literal["float32", "bfloat16"] = "float32"
    text_model: str | None = None
    """The BERT of Table 2, which is left out without."""
    seeds: int = 5
    updates: int | None = None
    """Length of training in every cell, in place of each head's own; what all of them would take is then projected."""
    what: tuple[str, ...] = ("table-1", "figure-2", "table-2")
    home: Path | None = None
    """A new folder for the features, the runs and the tables, to look at afterwards. Default: one that goes."""
    json: Path | None = None
    """Write everything measured to this file as well."""


def main(config: Config) -> None:
    """The whole benchmark."""
    found: dict[str, Any] = {"machine": machine(), "command": command_line("benchmarks.paper", config, PLACES)}
    with tempfile.TemporaryDirectory() as passing:
        work = config.home or Path(passing)
        if config.home and config.home.exists():
            raise CallError(f"--home {config.home} is there already: a cold start begins with nothing")
        corpus, root = config.corpus, config.root
        if corpus == "made":
            corpus, root = "csv", make(work / "corpus", config.utterances)
        watch, stages = OtherLoad(), []
        devices.prepare(work / "cache")
        flags: dict[str, Any] = {"corpus": corpus, "root": root, "classes": ",".join(LABELS) if corpus == "csv" else None}
        flags |= {"cache": work / "cache", "weights": config.weights, "precision": config.precision}
        extract_stages(extract.Config(**flags), config, stages)
        for name in config.what:
            if name == "table-2" and config.text_model is None:
                continue
            kind, number = name.split("-")
            more = {"text_model": config.text_model} if name == "table-2" else {}
            given = paper.Config(**flags, **more, **{kind: int(number)}, seeds=config.seeds, updates=config.updates)
            with timed(stages, name), redirect_stdout(StringIO()):
                paper.main(dataclasses.replace(given, runs=work / "runs", out=work / name))
            stages[-1]["cells"] = cells_of(work / name)
        found |= {"load": watch.share(), "stages": stages, "rows": [], "ratios": {}}
    conclude(found, report(found), config.json)


def extract_stages(flags: extract.Config, config: Config, stages: list[dict[str, Any]]) -> None:
    """Decoding alone, then each kind of features, decoding included."""
    corpus = extract.open_corpus(flags)
    with timed(stages, "decoding alone, one thread"):
        seconds = sum(len(audio.load(u.path, audio.MAX_SECONDS)) for u in corpus.utterances) / audio.SAMPLE_RATE
    stages[-1]["audio_seconds"] = seconds
    control = paper.CONTROLS.get(config.weights)
    kinds = {"descriptors": {"features": "lld", "weights": extract.Config.weights, "precision": extract.Config.precision}}
    kinds |= {f"wav2vec {config.weights}": {}} | ({f"wav2vec {control}": {"weights": control}} if control else {})
    for name, changed in kinds.items():
        with timed(stages, name):
            one = dataclasses.replace(flags, **changed)
            extract.extract_all(corpus, extract.extractors_of(one, ("audio",)), one)
        stages[-1]["audio_seconds"] = seconds


@contextmanager
def timed(stages: list[dict[str, Any]], name: str) -> Iterator[None]:
    """Add a stage and its wall seconds."""
    began = time.perf_counter()
    yield
    stages.append({"name": name, "seconds": time.perf_counter() - began})
    say(f"{name}: {stages[-1]['seconds']:.1f} s")


def cells_of(folder: Path) -> list[dict[str, Any]]:
    """What a table's cells took, as their run folders say; cells of one program share its time out by updates."""
    found = []
    for name, cell in json.loads((folder / "summary.json").read_text())["cells"].items():
        summary = json.loads((Path(cell["folder"]) / "summary.json").read_text())
        found.append({"name": name, "runs": summary["folds"] * summary["seeds"], "seconds": summary["seconds"]})
    return found


def make(home: Path, utterances: int) -> Path:
    """A corpus of noise with IEMOCAP's lengths, as a CSV with words."""
    random = np.random.default_rng(0)
    seconds = as_iemocap(random, utterances)
    home.mkdir(parents=True)
    with (home / "corpus.csv").open("w", newline="", encoding="utf-8") as file:
        write = csv.writer(file).writerow
        write(["path", "label", "speaker", "group", "text"])
        for i, length in enumerate(seconds):
            noise = random.normal(0, 0.05, int(length * audio.SAMPLE_RATE))
            soundfile.write(home / f"{i}.wav", noise, audio.SAMPLE_RATE)
            speaker = i // len(LABELS) % SPEAKERS
            text = " ".join(random.choice(WORDS, max(1, round(length * 2.5))))
            write([f"{i}.wav", LABELS[i % len(LABELS)], f"s{speaker}", f"session {speaker % SESSIONS}", text])
    return home / "corpus.csv"


def report(found: dict[str, Any]) -> str:
    """Everything as Markdown."""
    rows, total = [], sum(stage["seconds"] for stage in found["stages"])
    for stage in found["stages"]:
        speed = f"{stage['audio_seconds'] / stage['seconds']:.0f} s of audio a second" if "audio_seconds" in stage else ""
        rows.append([stage["name"], "", speed, f"{stage['seconds']:.1f}", f"{stage['seconds'] / total:.0%}"])
        rows += [["", one["name"], f"{one['runs']} runs", f"{one['seconds']:.1f}", ""] for one in stage.get("cells", ())]
    return "\n".join([*stamp(found), "", table(["stage", "cell", "what", "seconds", "share"], rows), f"\nall: {total:.0f} s"])


if __name__ == "__main__":
    run_benchmark("benchmarks.paper", Config, main)
