"""summary.json: scores with their intervals, counts, and how far the probabilities can be believed, from what runs gave."""

from typing import Any

import numpy as np

from jaxser import calibration, metrics, train
from jaxser.corpora import Corpus
from jaxser.ensemble import Trained

BINNED = ("share", "confidence", "accuracy")
"""What there is of each bin of predictions; None where it is empty."""


def logits_of(runs: list[train.Run], trained: Trained, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits of every utterance, f64[seeds, n, c], and the fold whose run predicted it, i64[n]."""
    seeds = len({run.seed for run in runs})
    logits, fold = np.zeros((seeds, n, trained.logits[0].shape[1])), np.zeros(n, np.int64)
    for run, found in zip(runs, trained.logits, strict=True):
        logits[run.seed, run.test], fold[run.test] = found, run.fold
    return logits, fold


def of_runs(
    config: Any, corpus: Corpus, labels: np.ndarray, folds: int, runs: list[train.Run], trained: Trained, placed: list[int]
) -> dict[str, Any]:
    """The scores with their intervals and the counts: summary.json without signature and time.

    `placed` is the device of each run, of all devices of all hosts; those that got none are not counted.
    """
    seeds = config.seeds
    logits, fold = logits_of(runs, trained, len(labels))
    predicted = logits.argmax(-1)
    unit, units = independent_units(corpus)
    counts = metrics.unit_counts(labels, predicted, fold, units, len(corpus.classes))
    summary: dict[str, Any] = {}
    for name, score in metrics.SCORES.items():
        found, by_seed = metrics.estimate([counts], score=score), metrics.mean_score(counts.sum(0), score)
        summary |= {f"{name}_mean": found.value, f"{name}_std": float(by_seed.std(ddof=1)) if seeds > 1 else None}
        summary |= {f"{name}_low": found.low, f"{name}_high": found.high}
    groups = holding_speakers(corpus)
    over = metrics.estimate([metrics.unit_counts(labels, predicted, fold, groups, len(corpus.classes))]) if groups else None
    summary |= {f"ua_{end}_over_groups": over and getattr(over, end) for end in ("low", "high")}
    summary["groups_as_units"] = len(set(groups))
    recalls = {}
    for label, name in enumerate(corpus.classes):
        found = metrics.recall(counts, label)
        recalls[name] = {"mean": found.value, "low": found.low, "high": found.high}
    return summary | {
        "calibration": _calibration(logits, labels, fold, units),
        "recalls": recalls,
        "head": config.head,
        "interval_unit": unit,
        "chance": 1 / len(corpus.classes),
        "classes": list(corpus.classes),
        "utterances": len(labels),
        "left_out": len(corpus.left_out),
        "speakers": len({u.speaker for u in corpus.utterances if u.speaker}),
        "folds": folds,
        "seeds": seeds,
        "devices": len(set(placed)),
        "runs_per_device": [placed.count(device) for device in sorted(set(placed))],
        "parallel": trained.parallel,
        "validate": config.validate,
    }


def _calibration(logits: np.ndarray, labels: np.ndarray, fold: np.ndarray, units: list[str]) -> dict[str, Any]:
    found = calibration.of_folds(logits, labels, fold, units)
    by_chance, by_chance_high = found.by_chance or (None, None)

    def plain(of: calibration.Reliability, interval: tuple[float, float] | None) -> dict[str, Any]:
        low, high = interval or (None, None)
        bins = {name: [None if np.isnan(x) else float(x) for x in getattr(of, name)] for name in BINNED}
        return {"error": of.error, "low": low, "high": high, **bins}

    return {
        "temperature": found.overall,
        "temperature_of_mean": found.of_mean,
        "temperature_by_fold": list(found.by_fold),
        "uncalibrated": plain(found.before, found.before_interval),
        "calibrated": plain(found.after, found.after_interval),
        "by_chance": by_chance,
        "by_chance_high": by_chance_high,
    }


def independent_units(corpus: Corpus) -> tuple[str, list[str]]:
    """What an interval counts as independent: speakers, else groups, else (and then too narrow) single utterances."""
    for name in ("speaker", "group"):
        if all(getattr(u, name) for u in corpus.utterances):
            return name, [getattr(u, name) for u in corpus.utterances]
    return "utterance", [u.id for u in corpus.utterances]


def holding_speakers(corpus: Corpus) -> list[str]:
    """The group of each utterance, where every speaker is in one and some hold several: those of one share a room or a dialect,
    and an interval that takes speakers as independent may be too narrow. Empty elsewhere."""
    if not all(u.group and u.speaker for u in corpus.utterances):
        return []
    groups, speakers, places = (
        len({of(u) for u in corpus.utterances})
        for of in (lambda u: u.group, lambda u: u.speaker, lambda u: (u.group, u.speaker))
    )
    return [u.group for u in corpus.utterances] if 1 < groups < speakers == places else []
