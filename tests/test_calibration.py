"""Temperatures and calibration errors against known cases and independent reckonings."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

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
