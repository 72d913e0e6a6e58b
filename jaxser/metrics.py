"""Scores of predictions and how sure they are. All are fractions 0-1."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64, Int, Int64
from scipy import stats


def confusion(labels: Int[np.ndarray, " n"], predicted: Int[np.ndarray, " n"], classes: int) -> Int64[np.ndarray, "c c"]:
    """Counts with the true class in rows and the predicted one in columns."""
    return np.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes)


def recalls(counts: Int64[np.ndarray, "*batch c c"]) -> Float64[np.ndarray, "*batch c"]:
    """Of each class, the share that was recognised; NaN for a class without examples."""
    with np.errstate(invalid="ignore"):
        return np.diagonal(counts, axis1=-2, axis2=-1) / counts.sum(-1)


def unweighted_accuracy(counts: Int64[np.ndarray, "*batch c c"]) -> Float64[np.ndarray, "*batch"]:
    """UA, the mean of the recalls (scikit-learn's balanced_accuracy_score): classes without examples do not count."""
    return _mean_of_cells(*_by_class(counts))


def weighted_accuracy(counts: Int64[np.ndarray, "*batch c c"]) -> Float64[np.ndarray, "*batch"]:
    """WA, plain accuracy: the share of all examples that was recognised."""
    return _mean_of_cells(*_all_together(counts))


# A score is a mean over cells of hits / examples: UA has a cell a class, WA a single one.


def _by_class(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.diagonal(counts, axis1=-2, axis2=-1), counts.sum(-1)


def _all_together(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.trace(counts, axis1=-2, axis2=-1)[..., None], counts.sum((-1, -2))[..., None]


def _mean_of_cells(hits: np.ndarray, examples: np.ndarray) -> np.ndarray:
    filled = np.maximum((examples > 0).sum(-1), 1)
    return np.asarray((hits / np.maximum(examples, 1)).sum(-1) / filled)


CELLS = {"ua": _by_class, "wa": _all_together}


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


def mean_score(counts: Int64[np.ndarray, "seeds folds c c"], metric: str = "ua") -> Float64[np.ndarray, " seeds"]:
    """Each seed's `ua` or `wa`: the mean over the folds of each fold's own (the paper's way), not that of the pooled counts."""
    hits, examples = CELLS[metric](counts)
    folds = (examples.sum(-1) > 0).sum(-1)
    return _mean_of_cells(hits, examples).sum(-1) / np.maximum(folds, 1)


def speaker_interval(
    counts: Int64[np.ndarray, "units seeds folds c c"], metric: str = "ua", level: float = 0.95
) -> tuple[float, float] | None:
    """The interval of the seed-averaged score over the population of speakers.

    Utterances of one voice are not independent, and seeds are repetitions on the same speakers: speakers alone are the unit.
    The score is a mean of ratios (hits / examples of a class in a fold), so its variance follows by linearisation from what
    each speaker contributes beyond the mean ratio of that class (Woodruff, JASA 66, 1971; Binder, International Statistical
    Review 51, 1983), with Student's t of units - 1 degrees of freedom. With two speakers a fold, as in IEMOCAP, a percentile
    bootstrap is too narrow and a delete-one jackknife too wide; a test shows our coverage. None with fewer than two
    units.
    """
    n = len(counts)
    if n < 2:
        return None
    hits, examples = CELLS[metric](counts)
    all_hits, all_examples = hits.sum(0), examples.sum(0)
    filled = all_examples > 0
    # The mean ratio of a cell over the folds, [seeds, 1, cells]: what an average speaker would have.
    expected = (all_hits / np.maximum(all_examples, 1)).sum(1, keepdims=True) / np.maximum(filled.sum(1, keepdims=True), 1)
    cells, folds = filled.sum(-1, keepdims=True), filled.any(-1).sum(-1)[:, None, None]
    beyond = (hits - expected * examples) / np.maximum(all_examples, 1) / np.maximum(cells, 1) / folds
    contribution = beyond.sum((2, 3)).mean(1)
    error = np.sqrt(n / (n - 1) * (contribution**2).sum())
    middle, half = mean_score(counts.sum(0), metric).mean(), stats.t.ppf((1 + level) / 2, n - 1) * error
    return max(0.0, float(middle - half)), min(1.0, float(middle + half))
