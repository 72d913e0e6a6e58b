"""Temperatures and calibration errors against known cases and independent reckonings."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from jaxser import calibration


def drawn(temperature: float, n: int = 20_000, classes: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and labels drawn from their softmax at this temperature."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, 2, (n, classes))
    noise = random.gumbel(size=(n, classes))
    return logits, (logits / temperature + noise).argmax(-1)


@pytest.mark.parametrize("truth", [0.5, 1.0, 3.0])
def test_the_temperature_that_labels_were_drawn_at_is_found(truth: float):
    logits, labels = drawn(truth)
    assert calibration.temperature(logits, labels) == pytest.approx(truth, rel=0.04)
    assert calibration.reliability(calibration.softmax(logits, truth), labels).error < 0.01
    assert calibration.reliability(calibration.softmax(logits, truth / 3), labels).error > 0.1


def test_at_the_temperature_the_likelihood_is_flat():
    # The maximum in the inverse temperature b: the logit of the label is on average what the softmax expects of it.
    logits, labels = drawn(2.0, n=500)
    p = calibration.softmax(logits, calibration.temperature(logits, labels))
    assert logits[np.arange(500), labels].mean() == pytest.approx((p * logits).sum(-1).mean(), abs=1e-4)


def test_extremes_stay_within_bounds():
    sure = np.eye(3)[[0, 1, 2, 0]] * 5
    assert calibration.COLDEST < calibration.temperature(sure, np.array([0, 1, 2, 0])) < 0.2
    assert 0.9 * calibration.HOTTEST < calibration.temperature(sure, np.array([1, 2, 0, 2])) < calibration.HOTTEST


def test_expected_calibration_error_by_hand():
    # Bins of a fifteenth: 0.9 twice, one right; 0.6 once, right; 0.5 once, wrong.
    p = np.array([[0.9, 0.1], [0.1, 0.9], [0.6, 0.4], [0.5, 0.5]])
    found = calibration.reliability(p, np.array([0, 0, 0, 1]))
    assert found.error == pytest.approx(0.5 * abs(0.9 - 0.5) + 0.25 * (1 - 0.6) + 0.25 * 0.5)
    assert found.share.sum() == pytest.approx(1)
    assert found.share[13] == 0.5


@given(st.integers(2, 6), st.integers(1, 60), st.integers(0, 2**32 - 1))
def test_expected_calibration_error_against_a_plain_loop(classes: int, n: int, seed: int):
    random = np.random.default_rng(seed)
    p = random.dirichlet(np.ones(classes), n)
    labels = random.integers(0, classes, n)
    error = 0.0
    for k in range(calibration.BINS):
        low, high = k / calibration.BINS, (k + 1) / calibration.BINS
        mine = [i for i in range(n) if low < p[i].max() <= high]
        if mine:
            sure = np.mean([p[i].max() for i in mine])
            error += len(mine) / n * abs(sure - np.mean([p[i].argmax() == labels[i] for i in mine]))
    assert calibration.reliability(p, labels).error == pytest.approx(error, abs=1e-9)


def test_a_folds_temperature_never_sees_its_labels_and_no_label_moves():
    logits, labels = drawn(2.0, n=300)
    folds, units = np.arange(300) % 5, [f"{i % 20}" for i in range(300)]
    first = calibration.of_folds(logits[None], labels, folds, units)
    changed = np.where(folds == 2, (labels + 1) % 4, labels)
    second = calibration.of_folds(logits[None], changed, folds, units)
    assert first.by_fold[2] == second.by_fold[2]
    assert all(first.by_fold[fold] != second.by_fold[fold] for fold in (0, 1, 3, 4))
    assert first.after.error < first.before.error
    cooled = calibration.softmax(logits, first.by_fold[0])
    np.testing.assert_array_equal(cooled.argmax(-1), logits.argmax(-1))


def test_the_interval_is_over_speakers():
    logits, labels = drawn(2.0, n=400)
    folds = np.arange(400) % 5
    few, many = ([f"{i % count}" for i in range(400)] for count in (2, 40))
    assert calibration.of_folds(logits[None], labels, folds, few).before_interval is None
    found = calibration.of_folds(logits[None], labels, folds, many)
    low, high = found.before_interval
    assert low < found.before.error < high
    # The same sound twice is no more evidence: every speaker's utterances doubled leave the interval where it was.
    twice = calibration.of_folds(np.tile(logits, (2, 1))[None], np.tile(labels, 2), np.tile(folds, 2), many * 2)
    assert twice.before_interval == pytest.approx((low, high))


def test_the_interval_is_that_of_leaving_out_each_speaker():
    random = np.random.default_rng(4)
    probabilities, labels = random.dirichlet(np.ones(3), (2, 90)), random.integers(0, 3, 90)
    units = [f"{i}" for i in random.integers(0, 7, 90)]
    without = []
    for name in sorted(set(units)):
        kept = np.array([unit != name for unit in units])
        rows = probabilities[:, kept].reshape(-1, 3)
        without.append(calibration.reliability(rows, np.tile(labels[kept], 2)).error)
    deviation = np.sqrt(6 / 7 * ((np.array(without) - np.mean(without)) ** 2).sum())
    low, high = calibration._interval(probabilities, labels, units, 0.5)
    assert (high - low) / 2 == pytest.approx(stats.t.ppf(0.975, 6) * deviation)


@pytest.mark.parametrize("n", [100, 800])
def test_what_true_probabilities_show_by_chance(n: int):
    # Of many corpora whose labels are drawn from the probabilities themselves.
    shown = []
    for seed in range(300):
        logits, labels = drawn(1.0, n=n, seed=seed)
        shown.append(calibration.reliability(calibration.softmax(logits), labels).error)
    logits, _ = drawn(1.0, n=n, seed=300)
    by_chance = calibration.error_by_chance(calibration.softmax(logits)[None])
    assert by_chance == pytest.approx(np.mean(shown), rel=0.1)
    # Seeds that say the same are no more evidence than one.
    three = calibration.error_by_chance(np.tile(calibration.softmax(logits), (3, 1, 1)))
    assert three == pytest.approx(by_chance)


def test_seeds_that_differ_are_more_evidence_than_one():
    # Three seeds that agree about 600 utterances, or are sure of three different classes.
    certain = np.array([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8]])
    alike, apart = np.tile(certain[0], (3, 600, 1)), np.repeat(certain[:, None], 600, 1)
    assert calibration.error_by_chance(apart) < 0.8 * calibration.error_by_chance(alike)
    # By hand: the mean distance of a binomial share from 0.8.
    assert calibration.error_by_chance(alike) == pytest.approx(np.sqrt(2 / np.pi * 0.8 * 0.2 / 600), rel=0.15)


def test_the_interval_covers_the_error_of_so_many_utterances():
    def corpus(random: np.random.Generator) -> tuple[np.ndarray, np.ndarray, list[str]]:
        # Twenty speakers, each heard at a temperature of its own.
        temperature = np.exp(random.normal(0.5, 0.4, 20))
        logits = random.normal(0, 2, (600, 4))
        labels = (logits / temperature[np.arange(600) % 20, None] + random.gumbel(size=(600, 4))).argmax(-1)
        return calibration.softmax(logits)[None], labels, [f"{i % 20}" for i in range(600)]

    random, found = np.random.default_rng(0), []
    for _ in range(400):
        probabilities, labels, units = corpus(random)
        error = calibration.reliability(probabilities[0], labels).error
        found.append((error, *calibration._interval(probabilities, labels, units, error)))
    error, low, high = np.array(found).T
    covered = np.mean((low <= error.mean()) & (error.mean() <= high))
    print(f"{100 * covered:.1f} % covered")
    assert 0.9 <= covered <= 0.99
