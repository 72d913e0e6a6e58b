import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix, recall_score

from jaxser import metrics

pairs = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=80)


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
    assert metrics.speaker_interval(counts, metric) == pytest.approx(expected)


def test_one_speaker_has_no_interval():
    labels = np.array([0, 1, 0, 1])
    counts = metrics.unit_counts(labels, labels[None], np.zeros(4, int), ["a"] * 4, 2)
    assert metrics.speaker_interval(counts) is None


def test_seeds_do_not_narrow_the_interval():
    random = np.random.default_rng(1)
    labels, folds = np.tile([0, 1], 60), np.repeat([0, 1], 60)
    predicted = np.where(random.random(120) < 0.7, labels, 1 - labels)
    speakers = [f"s{i // 12}" for i in range(120)]
    one = metrics.unit_counts(labels, predicted[None], folds, speakers, 2)
    ten = metrics.unit_counts(labels, np.tile(predicted, (10, 1)), folds, speakers, 2)
    assert metrics.speaker_interval(ten) == pytest.approx(metrics.speaker_interval(one))


@pytest.mark.parametrize(("speakers", "fold_count"), [(10, 5), (24, 5), (10, 10)])
def test_interval_covers_the_expected_score(speakers: int, fold_count: int):
    # Speakers differ in how well they, and each class of theirs, are recognised, and in how much they say. The truth is the
    # expected score over the population of speakers, by a large simulation of the same design.
    random = np.random.default_rng(speakers)

    def simulate(repeats: int):
        for _ in range(repeats):
            skill = 0.6 + random.normal(0, 0.08, (speakers, 1)) + random.normal(0, 0.12, (speakers, 4))
            said = (random.integers(4, 20, (speakers, 4)) * random.lognormal(0, 0.5, (speakers, 1))).astype(int) + 1
            right = random.binomial(said, np.clip(skill, 0.02, 0.98))
            counts = np.zeros((speakers, 1, fold_count, 4, 4), np.int64)
            for s in range(speakers):
                for c in range(4):
                    counts[s, 0, s % fold_count, c, c] = right[s, c]
                    counts[s, 0, s % fold_count, c, (c + 1) % 4] = said[s, c] - right[s, c]
            yield counts

    truth = np.mean([metrics.mean_score(counts.sum(0))[0] for counts in simulate(3000)])
    covered = [low <= truth <= high for low, high in map(metrics.speaker_interval, simulate(1000))]
    assert 0.92 <= np.mean(covered) <= 0.97  # 1,000 trials: standard error 0.7 %
