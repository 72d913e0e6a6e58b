"""A run folder as files: begun, written whole, read again."""

import csv
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from jaxser import metrics
from jaxser.command import differences
from jaxser.corpora import Corpus
from jaxser.digests import write_json
from jaxser.errors import CallError
from jaxser.train import CHUNK, Run, Trained


def finished_summary(out: Path, mine: dict[str, Any]) -> dict[str, Any] | None:
    """The summary of the finished run of this configuration in `out`, or None where there is nothing yet or an unfinished one.

    Raises CallError for a folder of another configuration, or one that holds something else.
    """
    note, summary = out / "config.json", out / "summary.json"
    if note.exists():
        found = _read_json(note)
        if differing := differences(found, mine):
            raise CallError(f"{out} is the folder of another configuration ({differing}): give another --out")
        return _read_json(summary) if summary.exists() else None
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CallError(f"{out} exists and is no run folder: give another --out")
    return None


def begin(out: Path, mine: dict[str, Any]) -> None:
    """Make the run folder with its config.json, once everything that can be refused has been looked at."""
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "config.json", mine)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        found = None
    if not isinstance(found, dict):
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

    With `random_weights` each has one more column, `weights`, that says RANDOM: no line of them can be taken for another.
    """
    classes = corpus.classes
    scores, rows, losses, total = [], [], [], np.zeros((len(classes), len(classes)), np.int64)
    for run, logits, loss in zip(runs, trained.logits, trained.losses, strict=True):
        probabilities = softmax(logits.astype(np.float64))
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
    for name, (header, lines) in tables.items():
        if random_weights:
            header, lines = [*header, "weights"], [[*line, "RANDOM"] for line in lines]
        write_csv(out / name, header, lines)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities along the last axis."""
    exponents = np.exp(logits - logits.max(-1, keepdims=True))
    return exponents / exponents.sum(-1, keepdims=True)


def write_csv(path: Path, header: list[str], rows: list[list[Any]]) -> None:
    """Write a CSV whole or not at all."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    with part.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])
    part.replace(path)


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV of a run folder, as text by column name."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
