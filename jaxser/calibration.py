"""How far probabilities can be believed: expected calibration error, reliability, and the temperature that mends them.

A head that is trained until its loss is small is surer than it is right. Dividing its logits by one number, the temperature,
fitted by maximum likelihood on logits of speakers it did not train on, mends most of that and moves no label (Guo et al.,
ICML 2017). The mean of several such heads is less sure than it is right, for where they differ it is between them: it has a
second temperature of its own.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, Int
from scipy import special

BINS = 15
"""Of equal width, as in Guo et al."""

DRAWS = 1_000

BLOCK = 2**22
"""Signs in memory at once: 32 MB of them."""

COLDEST, HOTTEST = 0.02, 50.0
"""Temperatures that are looked at: heads that make no mistake would want 0, and useless ones infinity."""


def softmax(logits: Float[np.ndarray, "*n c"], temperature: float = 1.0) -> Float64[np.ndarray, "*n c"]:
    """Probabilities along the last axis, of the logits divided by the temperature."""
    scaled = logits.astype(np.float64) / temperature
    exponents = np.exp(scaled - scaled.max(-1, keepdims=True))
    return exponents / exponents.sum(-1, keepdims=True)


def log_mean(logits: Float[np.ndarray, "r *n c"], temperature: float) -> Float64[np.ndarray, "*n c"]:
    """The logarithm of the mean of r heads' probabilities at this temperature, finite: logits of that mean."""
    scaled = logits.astype(np.float64) / temperature
    return special.logsumexp(scaled - special.logsumexp(scaled, -1, keepdims=True), 0) - np.log(len(logits))


def temperature(logits: Float[np.ndarray, "n c"], labels: Int[np.ndarray, " n"], coldest: float = COLDEST) -> float:
    """The temperature at which these labels are most likely, from `coldest` to HOTTEST."""
    from scipy import optimize  # only here: it takes half a second

    def loss(log: float) -> float:
        scaled = logits.astype(np.float64) * np.exp(-log)
        highest = scaled.max(-1)
        sums = highest + np.log(np.exp(scaled - highest[:, None]).sum(-1))
        return float((sums - scaled[np.arange(len(labels)), labels]).mean())

    # Convex in the inverse temperature, so it has one minimum in the logarithm too.
    return float(np.exp(optimize.minimize_scalar(loss, bounds=np.log([coldest, HOTTEST]), method="bounded").x))


@dataclass(frozen=True)
class Reliability:
    """Predictions by how sure they are, in BINS of equal width, f64[bins] each: their share of all predictions, their mean
    confidence and their accuracy (NaN where there are none)."""

    share: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray

    @property
    def error(self) -> float:
        """The expected calibration error: how far confidence and accuracy are apart, weighted by share; a fraction."""
        return float(np.nansum(self.share * np.abs(self.confidence - self.accuracy)))


def reliability(probabilities: Float[np.ndarray, "n c"], labels: Int[np.ndarray, " n"]) -> Reliability:
    """How sure these predictions are, and how often right."""
    sure, right = probabilities.max(-1), probabilities.argmax(-1) == labels
    place = _bins(sure)
    count = np.bincount(place, minlength=BINS)
    with np.errstate(invalid="ignore"):
        confidence, accuracy = (np.bincount(place, of, BINS) / count for of in (sure, right))
    return Reliability(count / len(labels), confidence, accuracy)


@dataclass(frozen=True)
class Calibration:
    """The calibration of a cross-validation.

    `by_fold[f]` was fitted on what the other folds' heads said of their own held-out speakers; `overall`, for speakers outside
    the corpus, on what all did. That shares a little: the other folds' heads were trained on fold f's speakers.
    """

    by_fold: tuple[float, ...]
    overall: float
    of_mean: float
    """What the logarithm of the mean over heads, at the temperature `overall`, is to be divided by: fitted on the mean of the
    seeds of each fold over its held-out speakers; 1 with one seed. At the least one over the seeds, as if each were a witness
    of its own: where their mean is always right, the likelihood would have it certain."""
    before: Reliability
    after: Reliability
    """With each fold's own temperature."""
    before_interval: tuple[float, float] | None
    after_interval: tuple[float, float] | None
    """95 % of the expected calibration errors of as many utterances, over speakers; None with fewer than three.

    An error is never below 0, so near it both are biased upwards: true probabilities too have a lower end above 0 more often
    than not. Whether an error is more than chance, `by_chance` tells.
    """
    by_chance: tuple[float, float] | None
    """What `error_by_chance` says of the calibrated probabilities."""


def of_folds(
    logits: Float[np.ndarray, "seeds n c"], labels: Int[np.ndarray, " n"], folds: Int[np.ndarray, " n"], units: list[str]
) -> Calibration:
    """The calibration of out-of-fold logits; all seeds count alike. `units`: what is independent, the speaker of each row."""
    seeds, _, classes = logits.shape

    def fitted(rows: np.ndarray) -> float:
        return temperature(logits[:, rows].reshape(-1, classes), np.tile(labels[rows], seeds))

    by_fold = tuple(fitted(folds != fold) for fold in range(folds.max() + 1))
    cooled = logits / np.array(by_fold)[folds][None, :, None]
    found = []
    for some in (logits, cooled):
        probabilities = softmax(some)
        whole = reliability(probabilities.reshape(-1, classes), np.tile(labels, seeds))
        found.append((whole, _interval(probabilities, labels, units, whole.error)))
    (before, before_interval), (after, after_interval) = found
    overall, by_chance = fitted(np.ones(len(labels), bool)), error_by_chance(softmax(cooled), labels, units)
    of_mean = temperature(log_mean(logits, overall), labels, coldest=1 / seeds) if seeds > 1 else 1.0
    return Calibration(by_fold, overall, of_mean, before, after, before_interval, after_interval, by_chance)


def error_by_chance(
    probabilities: Float64[np.ndarray, "seeds n c"], labels: Int[np.ndarray, " n"], units: list[str]
) -> tuple[float, float] | None:
    """The expected calibration error of probabilities that are true over all speakers: its mean, and what it exceeds in one
    of twenty cases; None with fewer than six units, which can show nothing.

    Some speakers are easier than a head believes, others harder. Were its probabilities true, the one would be as likely as
    the other: so each unit's sums over bins of how much surer than right it is change their sign at random, all seeds
    together. As a test that is exact where such sums are as likely as their negatives. What is off for all units alike makes
    both a little larger.
    """
    surer, _ = _by_unit(probabilities, labels, units)
    if len(surer) < 6:  # of five one pattern in sixteen is the data's own, so that no error is above 95 of 100
        return None
    errors = np.concatenate([np.abs(signs @ surer).sum(1) for signs in _signs(len(surer))]) / probabilities[..., 0].size
    return float(errors.mean()), float(np.quantile(errors, 0.95, method="inverted_cdf"))


def _signs(units: int) -> Iterator[Float64[np.ndarray, "b units"]]:
    # Where there are few, all patterns, but for those that turn every sign of another, to the same error; otherwise DRAWS.
    if (patterns := 2 ** (units - 1)) <= DRAWS:
        yield 1.0 - 2.0 * (np.arange(patterns)[:, None] >> np.arange(units) & 1)
        return
    random, most = np.random.default_rng(0), max(1, BLOCK // units)
    for first in range(0, DRAWS, most):
        yield random.integers(0, 2, (min(most, DRAWS - first), units), np.int8) * 2.0 - 1.0


def _by_unit(
    probabilities: Float64[np.ndarray, "seeds n c"], labels: Int[np.ndarray, " n"], units: list[str]
) -> tuple[Float64[np.ndarray, "units bins"], Int[np.ndarray, " units"]]:
    # How much surer than right the predictions of each unit are together, by bin, and how many utterances it has. An expected
    # calibration error is made of the sums of the former over units.
    names, unit = np.unique(np.asarray(units), return_inverse=True)
    sure, count = probabilities.max(-1), len(names)
    surer = sure - (probabilities.argmax(-1) == labels)
    sums = np.bincount((unit * BINS + _bins(sure)).ravel(), surer.ravel(), count * BINS)
    return sums.reshape(count, BINS), np.bincount(unit)


def _bins(sure: Float[np.ndarray, "*n"]) -> Int[np.ndarray, "*n"]:
    return np.clip(np.ceil(sure * BINS).astype(int) - 1, 0, BINS - 1)  # they are open below, as in Guo et al.


def _interval(
    probabilities: Float64[np.ndarray, "seeds n c"], labels: Int[np.ndarray, " n"], units: list[str], error: float
) -> tuple[float, float] | None:
    # A delete-one jackknife over speakers, Student's t.
    surer, utterances = _by_unit(probabilities, labels, units)
    count, (seeds, n, _) = len(surer), probabilities.shape
    if count < 3:
        return None
    without = np.abs(surer.sum(0) - surer).sum(1) / (seeds * (n - utterances))
    deviation = np.sqrt((count - 1) / count * ((without - without.mean()) ** 2).sum())
    half = float(special.stdtrit(count - 1, 0.975) * deviation)
    return max(0.0, error - half), min(1.0, error + half)
