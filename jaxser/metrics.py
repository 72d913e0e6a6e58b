"""Scores of predictions and how sure they are. All are fractions 0-1."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64, Int, Int64
from scipy import stats


def confusion(
    labels: Int[np.ndarray, " n"], predicted: Int[np.ndarray, " n"], classes: int
) -> Int64[np.ndarray, "c c"]:
    """Counts with the true class in rows and the predicted one in columns."""
    return np.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes)


def recalls(counts: Int64[np.ndarray, "*batch c c"]) -> Float64[np.ndarray, "*batch c"]:
    """Of each class, the share that was recognised; NaN for a class without examples."""
    with np.errstate(invalid="ignore"):
        return np.diagonal(counts, axis1=-2, axis2=-1) / counts.sum(-1)


def unweighted_accuracy(counts: Int64[np.ndarray, "*batch c c"]) -> Float64[np.ndarray, "*batch"]:
    """UA, the mean of the recalls (scikit-learn's balanced_accuracy_score): classes without examples do not count."""
    present = counts.sum(-1) > 0
    return np.nansum(recalls(counts), -1) / np.maximum(present.sum(-1), 1)


def weighted_accuracy(counts: Int64[np.ndarray, "*batch c c"]) -> Float64[np.ndarray, "*batch"]:
    """WA, plain accuracy: the share of all examples that was recognised."""
    return np.trace(counts, axis1=-2, axis2=-1) / np.maximum(counts.sum((-1, -2)), 1)


def unit_counts(
    labels: Int[np.ndarray, " n"],
    predicted: Int[np.ndarray, "seeds n"],
    folds: Int[np.ndarray, " n"],
    units: Sequence[str],
    classes: int,
) -> Int64[np.ndarray, "units seeds folds c c"]:
    """Confusion counts of every independent unit (a speaker), seed and fold: all that scores and intervals need."""
    names, unit = np.unique(np.asarray(units), return_inverse=True)
    seeds, fold_count = len(predicted), folds.max(initial=0) + 1
    counts = np.zeros((len(names), seeds, fold_count, classes, classes), np.int64)
    for seed in range(seeds):
        np.add.at(counts, (unit, seed, folds, labels, predicted[seed]), 1)
    return counts


def mean_score(
    counts: Int64[np.ndarray, "seeds folds c c"], score=unweighted_accuracy
) -> Float64[np.ndarray, " seeds"]:
    """Each seed's score: the mean over the folds of each fold's own (the paper's way), not that of the pooled counts.

    A fold that has no examples at all (its only speaker is left out by the jackknife) does not count.
    """
    filled = counts.sum((-1, -2)) > 0
    return (score(counts) * filled).sum(-1) / np.maximum(filled.sum(-1), 1)


def speaker_interval(
    counts: Int64[np.ndarray, "units seeds folds c c"], score=unweighted_accuracy, level: float = 0.95
) -> tuple[float, float] | None:
    """The interval of a seed-averaged score over the population of speakers, by the delete-one jackknife with Student's t.

    Utterances of one voice are not independent, and seeds are repetitions on the same speakers: speakers alone are the
    unit (Efron and Stein, "The jackknife estimate of variance", Annals of Statistics 9, 1981; t with units - 1 degrees of
    freedom as in Tukey's proposal). A percentile bootstrap is too narrow at ten speakers. None with fewer than two units.
    """
    n = len(counts)
    if n < 2:
        return None
    total = counts.sum(0)
    without = np.array([mean_score(total - one, score).mean() for one in counts])
    middle = mean_score(total, score).mean()
    error = np.sqrt((n - 1) / n * ((without - without.mean()) ** 2).sum())
    half = stats.t.ppf((1 + level) / 2, n - 1) * error
    return max(0.0, float(middle - half)), min(1.0, float(middle + half))
