"""How far probabilities can be believed: expected calibration error, reliability, and the temperature that mends them.

A head that is trained until its loss is small is surer than it is right. Dividing its logits by one number, the temperature,
fitted by maximum likelihood on logits of speakers it did not train on, mends most of that and moves no label (Guo et al.,
ICML 2017).
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, Int
from scipy import special

BINS = 15
"""Of equal width, as in Guo et al."""

DRAWS = 100

COLDEST, HOTTEST = 0.02, 50.0
"""Temperatures that are looked at: heads that make no mistake would want 0, and useless ones infinity."""


def softmax(logits: Float[np.ndarray, "*n c"], temperature: float = 1.0) -> Float64[np.ndarray, "*n c"]:
    """Probabilities along the last axis, of the logits divided by the temperature."""
    scaled = logits.astype(np.float64) / temperature
    exponents = np.exp(scaled - scaled.max(-1, keepdims=True))
    return exponents / exponents.sum(-1, keepdims=True)


def temperature(logits: Float[np.ndarray, "n c"], labels: Int[np.ndarray, " n"]) -> float:
    """The temperature at which these labels are most likely, from COLDEST to HOTTEST."""
    from scipy import optimize  # only here: it takes half a second

    def loss(log: float) -> float:
        scaled = logits.astype(np.float64) * np.exp(-log)
        highest = scaled.max(-1)
        sums = highest + np.log(np.exp(scaled - highest[:, None]).sum(-1))
        return float((sums - scaled[np.arange(len(labels)), labels]).mean())

    # Convex in the inverse temperature, so it has one minimum in the logarithm too.
    return float(np.exp(optimize.minimize_scalar(loss, bounds=np.log([COLDEST, HOTTEST]), method="bounded").x))


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
    before: Reliability
    after: Reliability
    """With each fold's own temperature."""
    before_interval: tuple[float, float] | None
    after_interval: tuple[float, float] | None
    """95 % of the expected calibration errors of as many utterances, over speakers; None with fewer than three."""
    by_chance: float
    """The expected calibration error that the calibrated probabilities would have if each were true: bins of few predictions
    are never right exactly as often as they are sure."""


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
    overall, by_chance = fitted(np.ones(len(labels), bool)), error_by_chance(softmax(cooled))
    return Calibration(by_fold, overall, before, after, before_interval, after_interval, by_chance)


def error_by_chance(probabilities: Float64[np.ndarray, "seeds n c"]) -> float:
    """The mean expected calibration error where every probability is true, by DRAWS draws of labels from them.

    An utterance has one label, whatever a seed makes of it: each draw has the same Gumbel noise for all seeds, which so get
    the same label as far as their probabilities agree.
    """
    sure, said, random = probabilities.max(-1), probabilities.argmax(-1), np.random.default_rng(0)
    place, errors = _bins(sure).ravel(), []
    with np.errstate(divide="ignore"):
        logarithms = np.log(probabilities)
    for _ in range(DRAWS):
        right = (logarithms + random.gumbel(size=probabilities.shape[1:])).argmax(-1) == said
        errors.append(np.abs(np.bincount(place, (sure - right).ravel(), BINS)).sum() / sure.size)
    return float(np.mean(errors))


def _bins(sure: Float[np.ndarray, "*n"]) -> Int[np.ndarray, "*n"]:
    return np.clip(np.ceil(sure * BINS).astype(int) - 1, 0, BINS - 1)  # they are open below, as in Guo et al.


def _interval(
    probabilities: Float64[np.ndarray, "seeds n c"], labels: Int[np.ndarray, " n"], units: list[str], error: float
) -> tuple[float, float] | None:
    # A delete-one jackknife over speakers, Student's t. An error is a sum over bins of how much surer than right predictions
    # are together: each speaker's part of those sums is all that is needed.
    names, unit = np.unique(np.asarray(units), return_inverse=True)
    count, (seeds, n, _) = len(names), probabilities.shape
    if count < 3:
        return None
    sure = probabilities.max(-1)
    surer = np.zeros((count, BINS))
    np.add.at(surer, (np.broadcast_to(unit, sure.shape), _bins(sure)), sure - (probabilities.argmax(-1) == labels))
    without = np.abs(surer.sum(0) - surer).sum(1) / (seeds * (n - np.bincount(unit)))
    deviation = np.sqrt((count - 1) / count * ((without - without.mean()) ** 2).sum())
    half = float(special.stdtrit(count - 1, 0.975) * deviation)
    return max(0.0, error - half), min(1.0, error + half)
