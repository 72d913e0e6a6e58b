"""Scores of predictions and how sure they are. All are fractions 0-1."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int, Int64
from scipy import special


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


# A score is a mean over cells of hits / examples: UA has a cell a class, WA a single one, a recall that of its class.

Cells = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Confusion counts [..., c, c] -> hits and examples of each cell, [..., cells]."""


def _by_class(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.diagonal(counts, axis1=-2, axis2=-1), counts.sum(-1)


def _all_together(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.trace(counts, axis1=-2, axis2=-1)[..., None], counts.sum((-1, -2))[..., None]


def recall_of(label: int) -> Cells:
    """The recall of one class, as a score."""

    def of_class(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return counts[..., label, label, None], counts[..., label, :].sum(-1)[..., None]

    return of_class


def _mean_of_cells(hits: np.ndarray, examples: np.ndarray) -> np.ndarray:
    filled = np.maximum((examples > 0).sum(-1), 1)
    return np.asarray((hits / np.maximum(examples, 1)).sum(-1) / filled)


UA: Cells = _by_class
WA: Cells = _all_together
SCORES = {"ua": UA, "wa": WA}


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


def mean_score(counts: Int64[np.ndarray, "seeds folds c c"], score: Cells = UA) -> Float64[np.ndarray, " seeds"]:
    """Each seed's score: the mean over the folds of each fold's own (the paper's way), not that of the pooled counts."""
    return fold_scores(counts, score).sum(-1) / np.maximum(_filled_folds(counts, score), 1)


def fold_scores(counts: Int64[np.ndarray, "seeds folds c c"], score: Cells = UA) -> Float64[np.ndarray, "seeds folds"]:
    """Each seed's score in each fold; 0 in a fold without examples."""
    return _mean_of_cells(*score(counts))


def _filled_folds(counts: np.ndarray, score: Cells) -> np.ndarray:
    _, examples = score(counts)
    return (examples.sum(-1) > 0).sum(-1)


ROUNDING = 1e-9
"""Differences of scores below this are sums taken in another order, and no differences."""

# Intervals. Utterances of one voice are not independent, and seeds are repetitions on the same speakers: speakers alone are
# the unit. A score is a mean of ratios (hits / examples of a class in a fold), so its variance follows by linearisation from
# what each speaker contributes beyond the mean ratio of that class (Woodruff, JASA 66, 1971; Binder, International
# Statistical Review 51, 1983). How far it falls short, and the degrees of freedom of Student's t, go by how evenly the
# examples are spread over speakers (Bell and McCaffrey, Survey Methodology 28, 2002): units - 1 where all speakers of all
# folds say equally much, few where a class is said by few, whose recall is then most of what is not known. With two speakers
# a fold, as in IEMOCAP, a percentile bootstrap is too narrow and a delete-one jackknife too wide; a test shows our coverage.
# Contributions add up like scores do: a difference of two systems on the same speakers, or the slope of a learning curve, has
# the same combination of contributions, and with them an interval that is paired by speaker.
#
# What such a combination is asked is whether one system is better than another, and all speakers of a fold share the luck of
# one training. So the variance of its mean over seeds is added, with the degrees of freedom of the sum (Satterthwaite, 1946).
# A single score has the spread over seeds beside it instead.


@dataclass(frozen=True)
class Estimate:
    """A value with its interval at 95 %; both bounds are None where units do not tell them."""

    value: float
    low: float | None
    high: float | None

    @property
    def excludes_zero(self) -> bool:
        """Whether zero lies outside of the interval; False where there is none."""
        return self.low is not None and (self.low > ROUNDING or self.high < -ROUNDING)


def contributions(counts: Int64[np.ndarray, "units seeds folds c c"], score: Cells = UA) -> Float64[np.ndarray, " units"]:
    """What each unit adds to the seed-averaged score, beyond what an average one would."""
    hits, examples = score(counts)
    in_score, in_mean = _an_example(examples.sum(0))
    expected = (in_mean * hits.sum(0)).sum(1, keepdims=True)
    return (in_score * (hits - expected * examples)).sum((2, 3)).mean(1)


def _an_example(examples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    # Of all examples of each cell, [seeds, folds, cells], what one counts for: in the score, and in the mean ratio of its cell
    # over the folds, which is what an average speaker would have.
    filled = examples > 0
    cells, folds = np.maximum(filled.sum(-1, keepdims=True), 1), filled.any(-1).sum(-1)[:, None, None]
    of_fold = filled / np.maximum(examples, 1)
    return of_fold / cells / np.maximum(folds, 1), of_fold / np.maximum(filled.sum(1, keepdims=True), 1)


def estimate(
    counts: Sequence[Int64[np.ndarray, "units _ folds c c"]],
    weights: Sequence[float] = (1.0,),
    score: Cells = UA,
    level: float = 0.95,
) -> Estimate:
    """The weighted sum of the seed-averaged scores of some systems on the same units, and its interval over the population of
    units.

    One system and the weight 1: its score. Two and the weights -1, 1: their paired difference. The systems may differ in their
    numbers of seeds, not in their examples. An interval over several systems takes in what other seeds would change, as far as
    these tell: one seed tells nothing. That of a single score ends at 0 and at 1. Where nothing was wrong, or nothing right, it
    is the exact one of an example for each unit, as many as are evenly filled: wider than with a mistake, for how much units
    differ does not show. Where all units happen to be equally good, it is that of independent examples. None where no class has
    examples of two units, and for several systems that differ by as much for every unit, though not in what they predict.
    """
    value = sum(w * float(mean_score(one.sum(0), score).mean()) for w, one in zip(weights, counts, strict=True))
    of_units = sum(w * contributions(one, score) for w, one in zip(weights, counts, strict=True))
    short, degrees = _known(counts[0], score)
    if not degrees:
        return Estimate(value, None, None)
    alone, tail = tuple(weights) == (1.0,), (1 - level) / 2
    if alone and min(value, 1 - value) < ROUNDING:
        return Estimate(value, *_clopper_and_pearson(float(round(value)), degrees + 1, tail))
    parts = [(float((of_units**2).sum()) / short, degrees)]
    parts += [] if alone else _among_seeds(counts, weights, score)
    variance = sum(part for part, _ in parts)
    if variance > ROUNDING**2:
        degrees = variance**2 / sum(part**2 / of for part, of in parts)
    elif alone:
        variance = value * (1 - value) / _independent(counts[0], score)
    else:
        same = abs(sum(weights)) < ROUNDING and all(np.array_equal(counts[0], one) for one in counts)
        return Estimate(0.0, 0.0, 0.0) if same else Estimate(value, None, None)
    half = float(special.stdtrit(degrees, 1 - tail) * np.sqrt(variance))
    lowest, highest = (0.0, 1.0) if alone else (-np.inf, np.inf)
    return Estimate(value, max(lowest, value - half), min(highest, value + half))


def recall(counts: Int64[np.ndarray, "units _ folds c c"], label: int, level: float = 0.95) -> Estimate:
    """The recall of one class, averaged over seeds, and its interval over the population of units.

    A share near 1 of few examples has no symmetric interval. This is the exact one for as many independent examples as would
    vary as much, fewer as far as Student's t is wider than the normal (Korn and Graubard, Survey Methodology 24, 1998). There
    are never more of them than examples, though all units be equally good by chance.
    """
    score, tail = recall_of(label), (1 - level) / 2
    plain = estimate([counts], score=score, level=level)
    if plain.low is None or min(plain.value, 1 - plain.value) < ROUNDING:
        return plain
    short, degrees = _known(counts, score)
    variance, number = float((contributions(counts, score) ** 2).sum()) / short, _independent(counts, score)
    if variance > ROUNDING**2:
        number = min(number, plain.value * (1 - plain.value) / variance)
    number *= float(special.stdtrit(np.inf, tail) / special.stdtrit(degrees, tail)) ** 2
    return Estimate(plain.value, *_clopper_and_pearson(plain.value, number, tail))


def _clopper_and_pearson(value: float, number: float, tail: float) -> tuple[float, float]:
    # Biometrika 26, 1934: of so many independent examples, which need not be a whole number.
    right, wrong = value * number, (1 - value) * number
    low = float(special.betaincinv(right, wrong + 1, tail)) if right else 0.0
    return low, float(special.betaincinv(right + 1, wrong, 1 - tail)) if wrong else 1.0


def _independent(counts: Int64[np.ndarray, "units seeds folds c c"], score: Cells) -> float:
    # How many examples tell as much as all of these together, were each independent of the others.
    _, examples = score(counts)
    in_score, _ = _an_example(examples.sum(0))
    return 1 / float((examples.sum(0) * in_score**2).sum((1, 2)).mean())


def _known(counts: Int64[np.ndarray, "units _ folds c c"], score: Cells) -> tuple[float, float]:
    """Of the variance of a score, the share that the sum of squared contributions has on average, and the degrees of freedom of
    that sum; 0 where no cell has examples of two units.

    For ratios that vary independently and equally from unit to unit and from cell to cell, of which scores know no better.
    """
    _, examples = score(counts)
    # Of a unit's ratio in each cell, f64[units, cells]: what it counts for, and for how much of the mean it is held against.
    in_score, in_mean = ((each * examples).sum(2).mean(1) for each in _an_example(examples.sum(0)))
    # Contributions are in_score * (ratio - mean ratio). Their covariance, for ratios of variance 1, is diagonal but for two
    # columns a cell; its trace and the sum of its squares follow without the matrix of units by units.
    own, squares = (in_score**2).sum(1), (in_mean**2).sum(0)
    sides = np.concatenate([in_score, in_score * in_mean], 1)
    one = np.eye(len(squares))
    middle = np.block([[np.diag(squares), -one], [-one, np.zeros_like(one)]])
    both, within = sides @ middle, sides.T @ sides @ middle
    trace = own.sum() + (both * sides).sum()
    of_squares = (own**2).sum() + 2 * (own * (both * sides).sum(1)).sum() + (within * within.T).sum()
    if trace <= ROUNDING * own.sum():
        return 0.0, 0.0
    return float(trace / own.sum()), float(trace**2 / of_squares)


def _among_seeds(
    counts: Sequence[Int64[np.ndarray, "units _ folds c c"]], weights: Sequence[float], score: Cells
) -> list[tuple[float, float]]:
    # Variances of means over seeds, with their degrees of freedom. A seed draws the same examples in every system: where all
    # have the same seeds, they are paired.
    of = [w * mean_score(one.sum(0), score) for w, one in zip(weights, counts, strict=True)]
    if len({len(one) for one in of}) == 1:
        of = [np.sum(of, 0)]
    return [(float(one.var(ddof=1)) / len(one), len(one) - 1.0) for one in of if len(one) > 1]


@dataclass(frozen=True)
class TTest:
    """A t statistic with its degrees of freedom and two-sided p-value; t and p are None where nothing varies."""

    t: float | None
    degrees: int
    p: float | None


def corrected_t_test(differences: Float64[np.ndarray, " k"], test_over_train: float) -> TTest:
    """Nadeau and Bengio's corrected resampled t-test (Machine Learning 52, 2003) on the differences of k folds.

    Training sets of folds overlap, so fold differences are not independent: the variance of their mean is taken as
    (1/k + n_test/n_train) of theirs in place of 1/k.
    """
    k = len(differences)
    spread = float(np.var(differences, ddof=1)) if k > 1 else 0.0
    if spread < ROUNDING**2:
        return TTest(None, k - 1, None)
    t = float(differences.mean() / np.sqrt((1 / k + test_over_train) * spread))
    return TTest(t, k - 1, float(2 * special.stdtr(k - 1, -abs(t))))


def log_weights(sizes: Sequence[int]) -> tuple[list[float], list[float]]:
    """Of the least-squares line a + b log(n) through scores at these sizes: the weights of the scores in a and in b, so that
    both are sums of scores and `estimate` knows their intervals. Raises ValueError for fewer than two different sizes."""
    if len(set(sizes)) < 2:
        raise ValueError(f"a line needs two sizes or more, got {list(sizes)}")
    solved = np.linalg.pinv(np.stack([np.ones(len(sizes)), np.log(np.asarray(sizes, np.float64))], 1))
    return solved[0].tolist(), solved[1].tolist()
