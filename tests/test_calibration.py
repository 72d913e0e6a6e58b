"""Temperatures and calibration errors against known cases and independent reckonings."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special, stats

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


def noisy(heads: int, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits of heads that are surer than right, each with noise of its own about a truth, and labels drawn from that."""
    random = np.random.default_rng(seed)
    truth = random.normal(0, 2, (n, 4))
    labels = (truth + random.gumbel(size=(n, 4))).argmax(-1)
    return 2 * (truth + random.normal(0, 1.5, (heads, n, 4))), labels


@pytest.mark.parametrize("heads", [2, 3, 6])
def test_the_mean_of_heads_is_calibrated_for_new_speakers(heads: int):
    logits, labels = noisy(heads, 3_000, 0)
    found = calibration.of_folds(logits, labels, np.arange(3_000) % 5, [f"{i % 30}" for i in range(3_000)])
    new, truth = noisy(heads, 20_000, 1)
    for head in new:  # the mean is the matter, not its heads
        assert calibration.reliability(calibration.softmax(head, found.overall), truth).error < 0.03
    mean = calibration.log_mean(new, found.overall)
    before, after = (calibration.reliability(calibration.softmax(mean, t), truth) for t in (1.0, found.of_mean))
    print(f"{heads} heads: {found.of_mean:.2f}; {100 * before.error:.1f} to {100 * after.error:.1f}")
    assert np.nansum(before.share * (before.confidence - before.accuracy)) < -0.04  # less sure than right
    assert after.error < 0.35 * before.error
    assert 1 / heads <= found.of_mean < 1
    np.testing.assert_array_equal(calibration.softmax(mean, found.of_mean).argmax(-1), mean.argmax(-1))


def test_the_mean_of_heads_is_that_of_their_probabilities():
    logits, _ = noisy(3, 50, 0)
    expected = special.softmax(logits / 1.7, -1).mean(0)
    np.testing.assert_allclose(np.exp(calibration.log_mean(logits, 1.7)), expected, rtol=1e-12)
    assert np.isfinite(calibration.log_mean(1e6 * logits, 0.02)).all()  # where probabilities are 0


def test_of_one_seed_nothing_is_known_of_means():
    logits, labels = noisy(1, 600, 0)
    found = calibration.of_folds(logits, labels, np.arange(600) % 5, [f"{i % 30}" for i in range(600)])
    assert found.overall > 1.5
    assert found.of_mean == 1
    useless = calibration.of_folds(-logits, labels, np.arange(600) % 5, [f"{i % 30}" for i in range(600)])
    assert useless.of_mean == 1


def test_a_mean_that_is_always_right_is_no_surer_than_as_many_witnesses():
    # Each seed is wrong about a row of its own, and the other two outvote it.
    logits, labels = np.tile(np.eye(3)[np.arange(30) % 3] * 2, (3, 1, 1)), np.arange(30) % 3
    for seed in range(3):
        logits[seed, seed] = np.roll(logits[seed, seed], 1)
    found = calibration.of_folds(logits, labels, np.arange(30) % 5, [f"{i % 6}" for i in range(30)])
    assert (calibration.log_mean(logits, found.overall).argmax(-1) == labels).all()
    assert found.of_mean == pytest.approx(1 / 3, rel=1e-3)


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


def calibrated(random: np.random.Generator, speakers: int, each: int, unlike: float) -> tuple[np.ndarray, np.ndarray, list]:
    """A system whose probabilities are true over all speakers, of whom every one is easier than it believes, or harder."""
    unit = np.repeat(np.arange(speakers), each)
    p = calibration.softmax(random.normal(0, 1.6, (len(unit), 4)))
    sure, said = p.max(-1), p.argmax(-1)
    of_speaker = random.choice([-unlike, unlike], speakers)[unit]
    right = random.random(len(unit)) < sure + 4 * of_speaker * sure * (1 - sure)
    return p[None], np.where(right, said, (said + 1) % 4), [f"{i:03}" for i in unit]


@pytest.mark.parametrize(
    ("speakers", "each", "unlike"), [(10, 553, 0.0), (10, 553, 0.1), (10, 34, 0.1), (24, 36, 0.1), (300, 1, 0.0)]
)
def test_what_probabilities_that_are_true_over_all_speakers_show_by_chance(speakers: int, each: int, unlike: float):
    random, found = np.random.default_rng(0), []
    for _ in range(400):
        p, labels, units = calibrated(random, speakers, each, unlike)
        found.append((calibration.reliability(p[0], labels).error, *calibration.error_by_chance(p, labels, units)))
    error, mean, high = np.array(found).T
    print(f"error {100 * error.mean():.2f}, by chance {100 * mean.mean():.2f}; {100 * np.mean(error > high):.1f} % above high")
    assert mean.mean() == pytest.approx(error.mean(), rel=0.05)
    assert 0.02 <= np.mean(error > high) <= 0.08


def test_an_error_of_all_speakers_is_more_than_chance():
    random = np.random.default_rng(0)
    for _ in range(20):
        p, labels, units = calibrated(random, 24, 36, 0.05)
        surer = p**2 / (p**2).sum(-1, keepdims=True)
        assert calibration.reliability(surer[0], labels).error > calibration.error_by_chance(surer, labels, units)[1]


def test_chance_among_six_speakers_by_hand():
    # One bin; two are surer than right by 0.6, three by 0.6 - 1, the last, of two utterances, by 0.2.
    p, labels = np.tile([0.6, 0.4], (1, 7, 1)), np.array([1, 1, 0, 0, 0, 0, 1])
    mean, high = calibration.error_by_chance(p, labels, list("abcdeff"))
    parts = itertools.product((-0.6, 0.6), (-0.6, 0.6), (-0.4, 0.4), (-0.4, 0.4), (-0.4, 0.4), (-0.2, 0.2))
    errors = np.sort([abs(sum(part)) / 7 for part in parts])
    assert (mean, high) == pytest.approx((errors.mean(), errors[60]))  # four of the 64, a sixteenth, are no smaller
    assert calibration.error_by_chance(p, labels, list("abcdeee")) is None


def test_seeds_that_differ_are_more_evidence_than_one():
    # Three seeds, each right about four of five utterances: the same ones, or whichever.
    random, labels, units = np.random.default_rng(0), np.zeros(600, int), [f"{i}" for i in range(600)]
    certain = np.array([[0.1, 0.8, 0.1], [0.8, 0.1, 0.1]])
    right = (random.random((3, 600)) < 0.8).astype(int)
    one, alike, apart = (calibration.error_by_chance(certain[of], labels, units) for of in (right[:1], right[[0, 0, 0]], right))
    assert alike == pytest.approx(one)
    assert apart == pytest.approx(np.array(one) / np.sqrt(3), rel=0.1)
    # By hand: a share of the right ones is normal about 0.8; the mean and the 95th percentile of its distance.
    deviation = np.sqrt(0.8 * 0.2 / 600)
    assert one == pytest.approx((np.sqrt(2 / np.pi) * deviation, stats.norm.ppf(0.975) * deviation), rel=0.1)


def test_few_signs_in_memory_and_few_draws_say_the_same(monkeypatch: pytest.MonkeyPatch):
    p, labels, units = calibrated(np.random.default_rng(1), 10, 34, 0.1)
    every = calibration.error_by_chance(p, labels, units)
    monkeypatch.setattr(calibration, "DRAWS", 500)  # fewer than there are patterns, so they are drawn
    for block in (2**22, 64, 1):
        monkeypatch.setattr(calibration, "BLOCK", block)
        assert sum(len(signs) for signs in calibration._signs(10)) == 500
        assert calibration.error_by_chance(p, labels, units) == pytest.approx(every, rel=0.1)


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
