"""A run folder as files: begun, written whole, read again."""

import csv
import os
import platform
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxser import metrics
from jaxser.calibration import softmax
from jaxser.command import differences
from jaxser.corpora import Corpus
from jaxser.ensemble import Trained
from jaxser.errors import CallError, WorkError
from jaxser.files import json_of, locked, read_csv, write_csv, write_json
from jaxser.kinds import misfit
from jaxser.train import Run

CHUNK = 250
"""Updates that a line of losses.csv takes the mean of."""


def finished_summary(out: Path, mine: dict[str, Any]) -> dict[str, Any] | None:
    """The summary of the finished run of this configuration in `out`, or None where there is nothing yet or an unfinished one.

    Raises CallError for a folder of another configuration, or one that holds something else.
    """
    note, summary = out / "config.json", out / "summary.json"
    if note.exists():
        found = read_json(note)
        if differing := differences(found, mine):
            raise CallError(f"{out} is the folder of another configuration ({differing}): give another --out")
        return read_json(summary) if summary.exists() else None
    # What is hidden is of a command that was killed before it had begun.
    if out.exists() and (not out.is_dir() or any(not path.name.startswith(".") for path in out.iterdir())):
        raise CallError(f"{out} exists and is no run folder: give another --out")
    return None


@contextmanager
def claimed(out: Path) -> Iterator[None]:
    """Keep a run folder, which is made where it is not there, for this process. Raises WorkError where another has it.

    The claim goes with the process, however that ends. On a disk that knows no locks there is none.
    """
    out.mkdir(parents=True, exist_ok=True)
    path = out / ".lock"
    while True:
        with path.open("a+", encoding="utf-8") as file:
            if not locked(file):
                file.seek(0)
                whose = file.read().strip() or "another process"
                raise WorkError(f"{out} is being written by {whose}: wait for it, or give another --out")
            if not path.exists() or path.stat().st_ino != os.fstat(file.fileno()).st_ino:
                continue  # the one before us has just let go of it
            file.truncate(0)
            file.write(f"process {os.getpid()} of {platform.node()}")
            file.flush()
            for cut_short in out.glob(".*.[0-9]*"):
                cut_short.unlink()  # files that a killed process had not finished
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


def begin(out: Path, mine: dict[str, Any]) -> None:
    """Make the run folder with its config.json, once everything that can be refused has been looked at."""
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "config.json", mine)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file of a run folder. Raises CallError where it is gone or damaged."""
    if (found := json_of(path)) is None:
        raise CallError(f"{path} is damaged: delete {path.parent}, or give another --out")
    return found


def write_results(
    out: Path,
    corpus: Corpus,
    runs: list[Run],
    trained: Trained,
    labels: np.ndarray,
    random_weights: bool = False,
) -> None:
    """scores.csv, predictions.csv, confusion.csv and losses.csv, each whole or not at all.

    The summary of an earlier result goes first: until one of these is written, the folder is not finished. With
    `random_weights` each has one more column, `weights`, that says RANDOM: no line of them can be taken for another.
    """
    classes = corpus.classes
    scores, rows, losses, total = [], [], [], np.zeros((len(classes), len(classes)), np.int64)
    for run, logits, loss in zip(runs, trained.logits, trained.losses, strict=True):
        probabilities = softmax(logits)
        predicted = logits.argmax(-1)
        counts = metrics.confusion(labels[run.test], predicted, len(classes))
        total += counts
        key = [run.fold, run.seed, run.train_size]
        scored = [metrics.unweighted_accuracy(counts), metrics.weighted_accuracy(counts), *metrics.recalls(counts)]
        scores.append(key + [f"{value:.6f}" for value in scored])
        for row, guess, p in zip(run.test, predicted, probabilities, strict=True):
            u = corpus.utterances[row]
            known = [u.id, u.speaker or "", u.group or "", *key, u.label, classes[guess]]
            rows.append(known + [f"{value:.8f}" for value in p])
        for first in range(0, len(loss), CHUNK):
            part = loss[first : first + CHUNK]
            losses.append([*key, first + len(part), f"{part.mean():.6f}"])
    start = ["fold", "seed", "train_size"]
    tables = {
        "scores.csv": ([*start, "ua", "wa", *(f"recall_{c}" for c in classes)], scores),
        "predictions.csv": (
            ["id", "speaker", "group", *start, "label", "predicted", *(f"p_{c}" for c in classes)],
            rows,
        ),
        "confusion.csv": (["label", *classes], [[c, *n] for c, n in zip(classes, total.tolist(), strict=True)]),
        "losses.csv": ([*start, "updates", "loss"], losses),
    }
    (out / "summary.json").unlink(missing_ok=True)
    for name, (header, lines) in tables.items():
        if random_weights:
            header, lines = [*header, "weights"], [[*line, "RANDOM"] for line in lines]
        write_csv(out / name, header, lines)


@dataclass(frozen=True)
class Prediction:
    """One utterance as a finished run scored it."""

    label: str
    speaker: str
    group: str
    fold: int
    predicted: Mapping[int, str]
    """By seed."""


@dataclass(frozen=True)
class Finished:
    """A finished run folder, read again."""

    folder: Path
    summary: Mapping[str, Any]
    card: Mapping[str, Any]
    predictions: Mapping[str, Prediction]
    """By id, in the order of ids."""

    @property
    def classes(self) -> list[str]:
        """Their names, in the order of the columns."""
        return self.summary["classes"]

    def counts(self, unit: str = "") -> np.ndarray:
        """metrics.unit_counts of its predictions: i64[units, seeds, folds, c, c].

        What is independent of each utterance is as summary.json names it, its speaker, its group, or itself; or as `unit` does.
        """
        unit, number = unit or self.summary["interval_unit"], {name: i for i, name in enumerate(self.classes)}
        units = [name if unit == "utterance" else getattr(p, unit) for name, p in self.predictions.items()]
        every = list(self.predictions.values())
        labels = np.array([number[p.label] for p in every])
        predicted = np.array([[number[p.predicted[seed]] for p in every] for seed in range(self.summary["seeds"])])
        return metrics.unit_counts(labels, predicted, np.array([p.fold for p in every]), units, len(number))


_MAYBE = float | None
_BOUNDS = {"low": _MAYBE, "high": _MAYBE}
_RELIABILITY = {"error": float, **_BOUNDS, "share": [float], "confidence": [_MAYBE], "accuracy": [_MAYBE]}
SUMMARY_KINDS = {
    "classes": [str], "utterances": int, "seeds": int, "folds": int, "speakers": int, "interval_unit": str, "head": str,
    "groups_as_units": int, "ua_low_over_groups": _MAYBE, "ua_high_over_groups": _MAYBE,
    "validate": bool, "random_weights": bool, "signature": str, "left_out": int, "seconds": float, "chance": float,
    **{f"{score}_{of}": float if of == "mean" else _MAYBE for score in ("ua", "wa") for of in ("mean", "std", "low", "high")},
    "recalls": {str: {"mean": float, **_BOUNDS}}, "runs_per_device": [int],
    "calibration": {
        "temperature_by_fold": [float], "uncalibrated": _RELIABILITY, "calibrated": _RELIABILITY,
        "by_chance": _MAYBE, "by_chance_high": _MAYBE,
    },
}  # fmt: skip
CARD_KINDS = {
    "corpus": str, "synthetic": bool, "utterances": int, "classes": {str: int}, "counts_by_group": {str: {str: int}},
    "speakers": int, "left_out": [[str]], "outside_classes": {str: int}, "notes": [str], "fold_rule": str, "subset_rule": str,
    "folds": [{"fold": int, "held_out": str, "test": int, "train": {str: int}}],
    "leak_checks": [{"looked_for": str, "found": [str]}], "leaks": [str], "training": str, "choices": {str: str},
    "features": str, "settings": {str: dict}, "versions": {str: str}, "device": str, "processor": str, "command": str,
}  # fmt: skip
"""What must stand in summary.json and protocol.json for a run folder to be read again."""


def read_reports(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """summary.json and protocol.json of a run folder. Raises CallError where one is gone, damaged or of another version."""
    summary, card = read_json(folder / "summary.json"), read_json(folder / "protocol.json")
    for name, found, kinds in (("summary.json", summary, SUMMARY_KINDS), ("protocol.json", card, CARD_KINDS)):
        if odd := misfit(found, kinds):
            raise CallError(f"{folder / name} is damaged or of another version, {odd}: delete {folder} and repeat its command")
    if half := _half_known(summary):
        raise CallError(f"{folder / 'summary.json'} is damaged, of {half} it has one: delete {folder} and repeat its command")
    folds, temperatures = card["folds"], summary["calibration"]["temperature_by_fold"]
    numbers = [fold["fold"] for fold in folds if fold["test"] > 0 and sum(fold["train"].values()) > 0]
    if not numbers == list(range(len(folds))) or not len(folds) == summary["folds"] == len(temperatures) > 0:
        raise CallError(
            f"{folder} is damaged: protocol.json has the folds {numbers} in place of {summary['folds']}, or empty ones; "
            f"delete {folder} and repeat its command"
        )
    return summary, card


def _half_known(summary: Mapping[str, Any]) -> str:
    # An interval of which one end is there without the other.
    for score, over in (("ua", ""), ("wa", ""), ("ua", "_over_groups")):
        ends = [f"{score}_{end}{over}" for end in ("low", "high")]
        if sum(summary[end] is None for end in ends) == 1:
            return " and ".join(ends)
    return ""


def read_finished(folder: Path) -> Finished:
    """Read a run folder. Raises CallError where there is none, one that is not finished, or a damaged one."""
    if not (folder / "config.json").is_file():
        raise CallError(f"{folder} is no run folder of jaxser.cv: it has no config.json")
    if not (folder / "summary.json").is_file():
        raise CallError(f"{folder} is not finished, it has no summary.json: repeat the command that began it")
    refuse_table(folder)
    summary, card = read_reports(folder)
    try:
        finished = Finished(folder, summary, card, _predictions(folder, summary))
        _demand_consistent(finished)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
        raise CallError(f"{folder} is damaged: {error}; delete {folder} and repeat its command") from None
    return finished


def refuse_table(folder: Path) -> None:
    """Raise CallError for the folder of a table or figure of jaxser.paper, which is made of runs and is none."""
    if "cells" in (json_of(folder / "summary.json") or {}):
        raise CallError(f"{folder} is a table or figure of jaxser.paper; its runs are named in {folder / 'cells.csv'}")


def _predictions(folder: Path, summary: Mapping[str, Any]) -> dict[str, Prediction]:
    # Raises ValueError, KeyError, TypeError for what no run of jaxser.cv has written.
    classes, seeds = summary["classes"], summary["seeds"]
    if len(classes) < 2 or len(set(classes)) < len(classes):
        raise ValueError(f"summary.json has the classes {classes}")
    if (unit := summary["interval_unit"]) not in ("speaker", "group", "utterance"):
        raise ValueError(f"summary.json has the interval_unit {unit!r}")
    seen: dict[str, dict[str, Any]] = {}
    predicted: dict[str, dict[int, str]] = defaultdict(dict)
    for row in read_csv(folder / "predictions.csv"):
        known = {name: row[name] for name in ("label", "speaker", "group")} | {"fold": int(row["fold"])}
        name = row["id"]
        if seen.setdefault(name, known) != known or int(row["seed"]) in predicted[name]:
            raise ValueError(f"in predictions.csv {name} stands there twice")
        if not 0 <= known["fold"] < summary["folds"]:
            raise ValueError(f"in predictions.csv {name} is in fold {known['fold']} of {summary['folds']}")
        if unit != "utterance" and not known[unit]:
            raise ValueError(f"in predictions.csv {name} has no {unit}")
        predicted[name][int(row["seed"])] = row["predicted"]
    for name, by_seed in predicted.items():
        whole = len(by_seed) == seeds and set(by_seed) == set(range(len(by_seed)))
        if not whole or not {seen[name]["label"], *by_seed.values()} <= set(classes):
            raise ValueError(f"in predictions.csv {name} has not one prediction of a class for each of {seeds} seeds")
    if len(predicted) != summary["utterances"]:
        raise ValueError(f"predictions.csv has {len(predicted)} utterances in place of {summary['utterances']}")
    return {name: Prediction(**seen[name], predicted=predicted[name]) for name in sorted(seen)}


def _demand_consistent(one: Finished) -> None:
    # Raises ValueError where the files of one folder contradict each other.
    again = float(metrics.mean_score(one.counts().sum(0)).mean())
    if not abs(again - one.summary["ua_mean"]) < 1e-6:
        raise ValueError(f"predictions.csv gives the UA {again:.6f}, summary.json {one.summary['ua_mean']:.6f}")
