from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix, recall_score
from statsmodels.regression.linear_model import OLS

from jaxser import metrics

pairs = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=80)


def bounds(counts: np.ndarray, score: metrics.Cells = metrics.UA) -> tuple[float, float]:
    found = metrics.estimate([counts], score=score)
    return found.low, found.high


@given(pairs)
def test_against_scikit_learn(drawn: list[tuple[int, int]]):
    labels, predicted = np.array(drawn).T
    counts = metrics.confusion(labels, predicted, 4)
    np.testing.assert_array_equal(counts, confusion_matrix(labels, predicted, labels=range(4)))
    present = np.unique(labels)
    recalls = metrics.recalls(counts)
    np.testing.assert_allclose(recalls[present], recall_score(labels, predicted, labels=present, average=None, zero_division=0))
    assert np.isnan(np.delete(recalls, present)).all()
    assert float(metrics.weighted_accuracy(counts)) == pytest.approx(accuracy_score(labels, predicted))
    expected = np.mean([np.mean(predicted[labels == c] == c) for c in present])
    assert float(metrics.unweighted_accuracy(counts)) == pytest.approx(expected)
    if set(predicted) <= set(present) and len(present) > 1:  # else scikit-learn warns
        assert expected == pytest.approx(balanced_accuracy_score(labels, predicted))


def test_score_is_the_mean_of_the_folds_and_not_pooled():
    # Fold 0: recalls 1/1 and 0/3, UA 0.5. Fold 1: recalls 2/4 and 1/1, UA 0.75. Pooled they would give (3/5 + 1/4) / 2.
    labels = np.array([0, 1, 1, 1, 0, 0, 0, 0, 1])
    predicted = np.array([[0, 0, 0, 0, 0, 0, 1, 1, 1]])
    folds = np.array([0] * 4 + [1] * 5)
    counts = metrics.unit_counts(labels, predicted, folds, list("aabbccddd"), 2)
    assert counts.shape == (4, 1, 2, 2, 2)
    assert metrics.mean_score(counts.sum(0)).tolist() == [0.625]


@pytest.mark.parametrize("metric", ["ua", "wa"])
def test_interval_of_a_plain_mean_is_the_textbooks(metric: str):
    # Each speaker says one example of each class, all in one fold: both scores are the plain mean over speakers of their own.
    random = np.random.default_rng(0)
    labels = np.tile([0, 1, 2, 3], 12)
    predicted = np.where(random.random(48) < 0.6, labels, (labels + 1) % 4)
    speakers = [f"s{i // 4}" for i in range(48)]
    counts = metrics.unit_counts(labels, predicted[None], np.zeros(48, int), speakers, 4)
    own = (labels == predicted).reshape(12, 4).mean(1)
    expected = stats.t.interval(0.95, 11, loc=own.mean(), scale=stats.sem(own))
    assert bounds(counts, metrics.SCORES[metric]) == pytest.approx(expected)


def test_one_speaker_has_no_interval():
    labels = np.array([0, 1, 0, 1])
    counts = metrics.unit_counts(labels, labels[None], np.zeros(4, int), ["a"] * 4, 2)
    found = metrics.estimate([counts])
    assert (found.value, found.low, found.high) == (1.0, None, None)
    assert not found.excludes_zero


def test_seeds_do_not_narrow_the_interval():
    random = np.random.default_rng(1)
    labels, folds = np.tile([0, 1], 60), np.repeat([0, 1], 60)
    predicted = np.where(random.random(120) < 0.7, labels, 1 - labels)
    speakers = [f"s{i // 12}" for i in range(120)]
    one = metrics.unit_counts(labels, predicted[None], folds, speakers, 2)
    ten = metrics.unit_counts(labels, np.tile(predicted, (10, 1)), folds, speakers, 2)
    assert bounds(ten) == pytest.approx(bounds(one))


def drawn(random: np.random.Generator, speakers: int, labels_of: int = 60) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, predictions and speakers of one fold, speakers unequal in what they say and in how well they are recognised."""
    said = random.integers(5, labels_of, speakers)
    speaker = np.repeat(np.arange(speakers), said)
    labels = random.integers(0, 4, len(speaker))
    right = random.random(len(speaker)) < random.uniform(0.3, 0.9, speakers)[speaker]
    return labels, np.where(right, labels, (labels + random.integers(1, 4, len(labels))) % 4), speaker


def bell_and_mccaffrey(said: np.ndarray, fold: np.ndarray) -> tuple[float, float]:
    """By matrices of units by units: the variance of a score over what squared contributions amount to on average, and their
    degrees of freedom, where the ratios of units that say so much of each cell, `said[units, cells]`, vary equally."""
    n, cells = said.shape
    folds = np.eye(fold.max() + 1)[fold]  # [units, folds]
    variance, covariance = 0.0, np.zeros((n, n))
    for cell in range(cells):
        within = said[:, cell] / (folds @ (folds.T @ said[:, cell]))  # of its fold's examples
        weight = within / (cells * folds.shape[1])
        against_mean = np.eye(n) - within / folds.shape[1]  # ratios -> ratios beyond the mean one
        contribution = np.diag(weight) @ against_mean
        variance += weight @ weight
        covariance += contribution @ contribution.T
    return variance / np.trace(covariance), np.trace(covariance) ** 2 / np.trace(covariance @ covariance)


@pytest.mark.parametrize("score", ["ua", "wa", "recall"])
def test_error_is_the_cluster_robust_one_of_statsmodels(score: str):
    # In one fold UA is the mean of four coefficients of a regression of hits on classes, WA its only coefficient.
    labels, predicted, speaker = drawn(np.random.default_rng(3), 12)
    counts = metrics.unit_counts(labels, predicted[None], np.zeros(len(labels), int), [f"s{i:02}" for i in speaker], 4)
    hits = (labels == predicted).astype(float)
    design = np.ones((len(labels), 1)) if score == "wa" else np.eye(4)[labels]
    weights = {"wa": [1.0], "ua": [0.25] * 4, "recall": [0, 0, 1.0, 0]}[score]
    fit = OLS(hits, design).fit(cov_type="cluster", cov_kwds={"groups": speaker, "use_correction": False})
    error = np.sqrt(weights @ fit.cov_params() @ weights)
    said = np.add.reduceat(design, np.flatnonzero(np.diff(speaker, prepend=-1)))[:, np.asarray(weights) > 0]
    short, degrees = bell_and_mccaffrey(said, np.zeros(12, int))
    half = stats.t.ppf(0.975, degrees) * error * np.sqrt(short)
    centre = fit.params @ weights
    found = metrics.estimate([counts], score={**metrics.SCORES, "recall": metrics.recall_of(2)}[score])
    assert found.value == pytest.approx(centre)
    assert (found.low, found.high) == pytest.approx((max(0, centre - half), min(1, centre + half)))
    assert degrees < 11  # speakers say unequally much


def test_an_interval_knows_that_few_say_a_class():
    # Ten speakers in three folds, the last class said by a speaker of each: its recall is most of what is not known.
    random = np.random.default_rng(8)
    said, fold = random.integers(3, 30, (10, 4)), np.arange(10) % 3
    said[3:, 3] = 0
    labels = np.concatenate([np.repeat(range(4), of) for of in said])
    speaker = np.repeat(range(10), said.sum(1))
    predicted = np.where(random.random(len(labels)) < 0.6, labels, (labels + 1) % 4)
    counts = metrics.unit_counts(labels, predicted[None], fold[speaker], [f"s{i}" for i in speaker], 4)
    short, degrees = bell_and_mccaffrey(said.astype(float), fold)
    assert 2 < degrees < 6  # of nine
    half = stats.t.ppf(0.975, degrees) * np.sqrt(short * (metrics.contributions(counts) ** 2).sum())
    found = metrics.estimate([counts])
    assert (found.low, found.high) == pytest.approx((found.value - half, found.value + half))


def test_what_only_one_speaker_says_is_taken_to_vary_as_the_rest_does():
    # By hand: two speakers, two classes. Both say the first, ten each; one says the second. Contributions come from the first
    # alone, where each of two squares is a quarter of the variance on average; the second is a weight of 1/2 more, unseen.
    counts = np.zeros((2, 1, 1, 2, 2), np.int64)
    counts[0, 0, 0], counts[1, 0, 0] = [[8, 2], [3, 7]], [[5, 5], [0, 0]]
    variance_of_a_ratio = (0.8 - 0.5) ** 2 / 2
    half = stats.t.ppf(0.975, 1) * np.sqrt(variance_of_a_ratio * (2 * (1 / 4) ** 2 + (1 / 2) ** 2))
    found = metrics.estimate([counts], (0.1,))  # a tenth of the score, which does not end at 1
    assert (found.value, found.high) == pytest.approx((0.0675, 0.0675 + half / 10))
    counts[0, 0, 0, 0] = 0  # now each says one class
    assert metrics.estimate([counts]) == metrics.Estimate(0.6, None, None)


def test_paired_difference_is_scipys_where_each_speaker_says_one_of_each():
    random = np.random.default_rng(5)
    labels = np.tile([0, 1, 2, 3], 15)
    speakers = [f"s{i // 4:02}" for i in range(60)]
    systems = [np.where(random.random(60) < share, labels, (labels + 1) % 4) for share in (0.5, 0.75)]
    counts = [metrics.unit_counts(labels, one[None], np.zeros(60, int), speakers, 4) for one in systems]
    own = [(labels == one).reshape(15, 4).mean(1) for one in systems]
    expected = stats.ttest_rel(own[1], own[0]).confidence_interval(0.95)
    found = metrics.estimate(counts, (-1.0, 1.0))
    assert found.value == pytest.approx(own[1].mean() - own[0].mean())
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert metrics.estimate([counts[0]] * 2, (-1.0, 1.0)) == metrics.Estimate(0.0, 0.0, 0.0)
    assert not metrics.estimate([counts[0]] * 2, (-1.0, 1.0)).excludes_zero


def test_rounding_is_no_difference():
    # The same predictions with their seeds in another order: sums differ in their last bits.
    random = np.random.default_rng(0)
    told = []
    for _ in range(100):
        labels, predicted, speaker = drawn(random, 12)
        other = np.where(random.random(len(labels)) < 0.3, (predicted + 1) % 4, predicted)
        third = np.where(random.random(len(labels)) < 0.3, (predicted + 1) % 4, predicted)
        folds, names = speaker % 4, [f"s{i:02}" for i in speaker]
        pair = [
            metrics.unit_counts(labels, np.stack(order), folds, names, 4)
            for order in ((predicted, other, third), (third, predicted, other))
        ]
        told.append(metrics.estimate(pair, (-1.0, 1.0)).excludes_zero)
    assert not any(told)


def test_corrected_t_test():
    differences = np.array([0.021, 0.034, -0.008, 0.052, 0.017])
    plain = stats.ttest_1samp(differences, 0)
    found = metrics.corrected_t_test(differences, 0.0)  # nothing to correct
    assert (found.t, found.degrees, found.p) == pytest.approx((plain.statistic, 4, plain.pvalue))
    # By hand, five folds of a corpus: n_test/n_train = 1/4, so the variance counts 1/5 + 1/4 = 9/20 in place of 1/5.
    found = metrics.corrected_t_test(differences, 0.25)
    assert found.t == pytest.approx(plain.statistic / np.sqrt(9 / 4))
    assert found.p == pytest.approx(2 * stats.t.sf(plain.statistic / 1.5, 4))
    assert metrics.corrected_t_test(np.full(3, 0.1), 0.25).p is None  # their deviation is rounding, and no deviation
    assert metrics.corrected_t_test(np.zeros(5), 0.25) == metrics.TTest(None, 4, None)
    assert metrics.corrected_t_test(np.array([0.1]), 0.25).p is None


def test_line_through_scores_is_scipys():
    sizes, scores = [64, 124, 248, 500], np.array([0.41, 0.46, 0.55, 0.58])
    start, slope = metrics.log_weights(sizes)
    line = stats.linregress(np.log(sizes), scores)
    assert (np.dot(start, scores), np.dot(slope, scores)) == pytest.approx((line.intercept, line.slope))
    with pytest.raises(ValueError, match="two sizes"):
        metrics.log_weights([100, 100])


def simulate(
    random: np.random.Generator,
    speakers: int,
    fold_count: int,
    repeats: int,
    systems: int = 1,
    seeds: int = 1,
    luck: float = 0,
    of_last: int | None = None,
) -> Iterator[list[np.ndarray]]:
    """Counts of equally good systems on the same utterances. Speakers differ in how well they, and each class of theirs, are
    recognised, by all systems alike and by each on its own, and in how much they say. `luck` is the deviation of what one
    training does to all speakers of its fold. `of_last` speakers alone say the last class."""
    fold = np.arange(speakers) % fold_count
    speaker, seed, label = np.ix_(range(speakers), range(seeds), range(4))
    for _ in range(repeats):
        common = 0.6 + random.normal(0, 0.08, (speakers, 1)) + random.normal(0, 0.1, (speakers, 4))
        said = (random.integers(4, 20, (speakers, 4)) * random.lognormal(0, 0.5, (speakers, 1))).astype(int) + 1
        said[speakers if of_last is None else of_last :, 3] = 0
        every = []
        for _ in range(systems):
            of_system = common + random.normal(0, 0.07, (speakers, 4))
            of_training = random.normal(0, luck, (seeds, fold_count))[:, fold].T if luck else np.zeros((speakers, seeds))
            share = np.clip(of_system[:, None] + of_training[:, :, None], 0.02, 0.98)
            right = random.binomial(said[:, None], share)
            counts = np.zeros((speakers, seeds, fold_count, 4, 4), np.int64)
            counts[speaker, seed, fold[:, None, None], label, label] = right
            counts[speaker, seed, fold[:, None, None], label, (label + 1) % 4] = said[:, None] - right
            every.append(counts)
        yield every


@pytest.mark.parametrize(
    ("speakers", "fold_count", "of_last"),
    [(10, 5, 10), (24, 5, 24), (10, 10, 10), (100, 5, 100), (10, 5, 5), (24, 5, 5), (100, 5, 5), (6, 3, 3)],
)
def test_interval_covers_the_expected_score(speakers: int, fold_count: int, of_last: int):
    # The truth is the expected score over the population of speakers, by a large simulation of the same design.
    random, design = np.random.default_rng(speakers), (speakers, fold_count)
    truth = np.mean([metrics.mean_score(one.sum(0))[0] for (one,) in simulate(random, *design, 3000, of_last=of_last)])
    found = map(bounds, (one for (one,) in simulate(random, *design, 1000, of_last=of_last)))
    covered = [low <= truth <= high for low, high in found]
    print(f"{speakers} speakers ({of_last} of a class), {fold_count} folds: {100 * np.mean(covered):.1f} % covered")
    assert 0.93 <= np.mean(covered) <= 0.975  # 1,000 trials: standard error 0.7 %


@pytest.mark.parametrize("speakers", [10, 24, 100])
def test_equal_systems_cannot_be_told_apart(speakers: int):
    random = np.random.default_rng(speakers + 1)
    told = [metrics.estimate(pair, (-1.0, 1.0)).excludes_zero for pair in simulate(random, speakers, 5, 1000, systems=2)]
    print(f"{speakers} speakers: {100 - 100 * np.mean(told):.1f} % cannot tell")
    assert 0.03 <= np.mean(told) <= 0.08


@pytest.mark.parametrize(("speakers", "seeds"), [(24, 3), (100, 3)])
def test_the_luck_of_a_training_makes_no_system_better(speakers: int, seeds: int):
    random = np.random.default_rng(speakers + seeds)
    pairs = simulate(random, speakers, 5, 1000, systems=2, seeds=seeds, luck=0.06)
    told = [metrics.estimate(pair, (-1.0, 1.0)).excludes_zero for pair in pairs]
    print(f"{speakers} speakers, {seeds} seeds: {100 - 100 * np.mean(told):.1f} % cannot tell")
    assert 0.01 <= np.mean(told) <= 0.07  # seeds are few, and a fold's speakers show some of its luck: rather too wide


def of_seeds(shares: list[int], speakers: int = 6) -> np.ndarray:
    """Two classes in two folds, every speaker alike: so many of a hundred of each class right, by seed."""
    counts = np.zeros((speakers, len(shares), 2, 2, 2), np.int64)
    for speaker in range(speakers):
        for seed, right in enumerate(shares):
            counts[speaker, seed, speaker % 2] = [[right, 100 - right], [100 - right, right]]
    return counts


def test_where_speakers_are_alike_seeds_alone_decide():
    ours, theirs = [61, 64, 66, 60], [58, 63, 60, 55]
    found = metrics.estimate([of_seeds(theirs), of_seeds(ours)], (-1.0, 1.0))
    expected = stats.ttest_rel(ours, theirs).confidence_interval()  # the same seeds: paired
    assert (found.low, found.high) == pytest.approx((expected.low / 100, expected.high / 100))
    found = metrics.estimate([of_seeds(theirs), of_seeds(ours[:3])], (-1.0, 1.0))
    expected = stats.ttest_ind(ours[:3], theirs, equal_var=False).confidence_interval()  # Welch's degrees of freedom
    assert (found.low, found.high) == pytest.approx((expected.low / 100, expected.high / 100))
    alone = metrics.estimate([of_seeds(ours)])
    half = stats.t.ppf(0.975, 5) * np.sqrt(alone.value * (1 - alone.value) / 1200)  # six speakers of 200 examples, no seeds
    assert (alone.low, alone.high) == pytest.approx((alone.value - half, alone.value + half))


@pytest.mark.parametrize("speakers", [2, 10, 24])
def test_a_score_without_mistakes_is_not_certain(speakers: int):
    labels = np.tile([0, 1], speakers)
    names, folds = [f"s{i // 2}" for i in range(2 * speakers)], np.repeat(np.arange(speakers) % 2, 2)
    exact = stats.binomtest(speakers, speakers).proportion_ci(0.95, "exact")
    for score in (metrics.UA, metrics.WA, metrics.recall_of(1)):
        found = metrics.estimate([metrics.unit_counts(labels, labels[None], folds, names, 2)], score=score)
        assert (found.value, found.low, found.high) == pytest.approx((1.0, exact.low, 1.0))
        found = metrics.estimate([metrics.unit_counts(labels, 1 - labels[None], folds, names, 2)], score=score)
        assert (found.value, found.low, found.high) == pytest.approx((0.0, 0.0, 1 - exact.low))


def test_a_recall_knows_only_of_speakers_who_say_the_class():
    labels, predicted, speaker = drawn(np.random.default_rng(7), 12)
    labels = np.where((labels == 2) & (speaker >= 4), 3, labels)  # four of them say it
    folds, names = speaker % 2, [f"s{i:02}" for i in speaker]
    some, his = speaker < 4, predicted[None]
    every = metrics.recall(metrics.unit_counts(labels, his, folds, names, 4), 2)
    few = metrics.recall(
        metrics.unit_counts(labels[some], his[:, some], folds[some], [f"s{i:02}" for i in speaker[some]], 4), 2
    )
    assert (every.low, every.high) == pytest.approx((few.low, few.high))
    alone = metrics.unit_counts(np.where(labels == 2, 2 * (speaker == 0), labels), his, folds, names, 4)
    assert metrics.recall(alone, 2).low is None  # one speaker


def of_one_class(said: int, right: list[int]) -> np.ndarray:
    """Each speaker says the first class so often, in folds by turns, and so many are recognised."""
    counts = np.zeros((len(right), 1, min(5, len(right)), 2, 2), np.int64)
    for speaker, hits in enumerate(right):
        counts[speaker, 0, speaker % 5, 0] = hits, said - hits
    return counts


@pytest.mark.parametrize(
    ("speakers", "said", "share"), [(2, 4, 0.6), (3, 10, 0.6), (10, 4, 0.95), (24, 4, 0.95), (24, 10, 0.98), (100, 8, 0.99)]
)
def test_the_interval_of_a_recall_covers_it(speakers: int, said: int, share: float):
    # Speakers differ: a tenth of the variance of an utterance is theirs. (Of a fifth, and 36 or 50 said by each, 88 % do.)
    random, trials = np.random.default_rng(speakers), 1000
    of_speakers = random.beta(9 * share, 9 * (1 - share), (trials, speakers))
    every = [metrics.recall(of_one_class(said, right), 0) for right in random.binomial(said, of_speakers).tolist()]
    covered = np.mean([found.low <= share <= found.high for found in every])
    print(f"recall {share} of {speakers} speakers, {said} each: {100 * covered:.1f} % covered")
    assert covered >= 0.94
    assert all(found.low < found.high for found in every)


def test_the_interval_of_a_recall_is_korn_and_graubards():
    # One example a speaker in one fold, so all are independent: as many as there are, less what Student's t is wider.
    counts = np.zeros((40, 1, 1, 2, 2), np.int64)
    counts[:34, 0, 0, 0, 0] = counts[34:, 0, 0, 0, 1] = 1
    number = 39 * (stats.norm.ppf(0.975) / stats.t.ppf(0.975, 39)) ** 2  # 39 of 40: the variance is that of a sample
    low = stats.beta.ppf(0.025, 0.85 * number, 0.15 * number + 1)
    high = stats.beta.ppf(0.975, 0.85 * number + 1, 0.15 * number)
    found = metrics.recall(counts, 0)
    assert (found.value, found.low, found.high) == pytest.approx((0.85, low, high))
    # Nobody better than another, of ten said by each of four: as many as there are.
    number = 40 * (stats.norm.ppf(0.975) / stats.t.ppf(0.975, 3)) ** 2
    low = stats.beta.ppf(0.025, 0.6 * number, 0.4 * number + 1)
    assert metrics.recall(of_one_class(10, [6, 6, 6, 6]), 0).low == pytest.approx(low)


def test_units_that_happen_to_be_alike_make_nothing_certain():
    alike, better = of_one_class(10, [6, 6, 6, 6]), of_one_class(10, [7, 7, 7, 7])
    half = stats.t.ppf(0.975, 3) * np.sqrt(0.6 * 0.4 / 40)
    found = metrics.estimate([alike])
    assert (found.low, found.high) == pytest.approx((0.6 - half, 0.6 + half))
    found = metrics.estimate([alike, better], (-1.0, 1.0))
    assert (found.value, found.low) == (pytest.approx(0.1), None)
    assert metrics.estimate([alike, alike], (-1.0, 1.0)) == metrics.Estimate(0.0, 0.0, 0.0)
    first, second = (np.zeros((4, 1, 1, 2, 2), np.int64) for _ in range(2))
    first[..., 0], second[..., 1] = 10, 10  # one says the first class of everything, one the second: each right half the time
    assert metrics.estimate([first, second], (-1.0, 1.0)) == metrics.Estimate(0.0, None, None)


def test_what_really_differs_is_told_apart():
    random = np.random.default_rng(2)
    told = []
    for one, other in simulate(random, 24, 5, 100, systems=2):
        better = other.copy()
        for c in range(4):  # two thirds of the mistakes are mended
            mended = better[..., c, (c + 1) % 4] * 2 // 3
            better[..., c, c] += mended
            better[..., c, (c + 1) % 4] -= mended
        told.append(metrics.estimate([one, better], (-1.0, 1.0)).low > 0)
    assert np.mean(told) > 0.95
