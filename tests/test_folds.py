from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxser import corpora, folds
from jaxser.corpora import Corpus, Utterance
from jaxser.errors import CallError, WorkError


def corpus_of(speakers: list[str | None], groups: list[str | None] | None = None, labels: list[str] | None = None) -> Corpus:
    groups = groups or [None] * len(speakers)
    labels = labels or ["ab"[i % 2] for i in range(len(speakers))]
    rows = enumerate(zip(speakers, groups, labels, strict=True))
    return Corpus("csv", tuple(Utterance(str(i), Path("x"), y, s, g) for i, (s, g, y) in rows), ("a", "b"))


def test_one_fold_a_group():
    corpus = corpus_of(["1", "2", "3", "4"] * 2, ["x", "x", "y", "z"] * 2)
    dealt = folds.assign(corpus)
    assert dealt.of.tolist() == [0, 0, 1, 2] * 2
    assert dealt.names == ("x", "y", "z")


def test_ravdess_pairs_are_dealt_in_turn(ravdess: Path):
    corpus = corpora.read("ravdess", ravdess, "paper")
    dealt = folds.assign(corpus)
    assert all(fold == (int(u.speaker) - 1) // 2 % 5 for u, fold in zip(corpus.utterances, dealt.of, strict=True))


def test_emodb_pairs(emodb: Path):
    dealt = folds.assign(corpora.read("emodb", emodb, "paper"))
    assert dealt.names == ("03, 08", "09, 10", "11, 13", "12, 14", "15, 16")


@given(st.lists(st.integers(0, 12), min_size=20, max_size=200), st.integers(2, 6))
def test_no_speaker_on_both_sides(speakers: list[int], count: int):
    corpus = corpus_of([f"s{s}" for s in speakers])
    if len(set(speakers)) < count:
        many = f"only {len(set(speakers))} speakers"
        with pytest.raises(CallError, match=many if len(set(speakers)) > 1 else "impossible with one speaker"):
            folds.assign(corpus, count)
        return
    dealt = folds.assign(corpus, count)
    assert set(dealt.of) == set(range(count))
    sides = {(u.speaker, int(fold)) for u, fold in zip(corpus.utterances, dealt.of, strict=True)}
    assert len(sides) == len(set(speakers))
    insides = folds.splits(dealt, validate=True) if count > 2 else [None] * count
    for rows, inside in zip(folds.splits(dealt), insides, strict=True):
        train, test = rows.train, rows.test
        assert sorted([*train, *test]) == list(range(len(speakers)))
        assert not {speakers[i] for i in train} & {speakers[i] for i in test}
        if inside:
            voices = [{speakers[i] for i in some} for some in (inside.train, inside.test, test)]
            assert len(set.union(*voices)) == sum(map(len, voices))
    if count > 2:  # what `cv --validate` says of its mean
        assert sorted(row for inside in insides for row in inside.test) == list(range(len(speakers)))


def test_validation_needs_a_third_fold():
    with pytest.raises(CallError, match="at least three folds"):
        folds.splits(folds.assign(corpus_of(["1", "2"] * 4), 2), validate=True)


def test_speakers_are_dealt_evenly():
    sizes = {"a": 50, "b": 30, "c": 20, "d": 10, "e": 10}
    dealt = folds.assign(corpus_of([s for s, n in sizes.items() for _ in range(n)]), 2)
    assert sorted(Counter(dealt.of.tolist()).values()) == [60, 60]


def test_no_speakers_and_no_groups():
    corpus = corpus_of([None] * 20)
    with pytest.raises(CallError, match=r"impossible.*--random-folds"):
        folds.assign(corpus)
    dealt = folds.assign(corpus, random=True)
    assert not dealt.speaker_independent
    assert "NOT speaker-independent" in dealt.rule
    assert set(Counter(dealt.of.tolist()).values()) == {4}
    labels = [u.label for u in corpus.utterances]
    assert {Counter(np.array(labels)[dealt.of == f].tolist())["a"] for f in range(5)} == {2}


def test_random_folds_are_refused_where_speakers_are_known():
    with pytest.raises(CallError, match="voices heard in training"):
        folds.assign(corpus_of(["1", "2"] * 5), random=True)


@pytest.mark.parametrize(("count", "message"), [(1, "at least two"), (0, "at least two"), (3, "only 2 speakers")])
def test_impossible_counts(count: int, message: str):
    with pytest.raises(CallError, match=message):
        folds.assign(corpus_of(["1", "2"] * 5), count)


def test_a_single_group():
    with pytest.raises(CallError, match=r"only one group, 'x'"):
        folds.assign(corpus_of(["1", "2"], ["x", "x"]))


IMPOSSIBLE = r"impossible with one {}: nobody is left to train on.*leave the columns speaker and group out .*--random-folds"


@pytest.mark.parametrize(
    ("corpus", "count", "what"),
    [
        (corpus_of(["1"] * 4), None, r"speaker \(1\)"),
        (corpus_of(["1"] * 4), 2, r"speaker \(1\)"),
        (corpus_of(["1"] * 4, ["x", "x", "y", "y"]), 2, r"speaker \(1\)"),
        (corpus_of([None] * 4, ["x"] * 4), None, r"group \(x\)"),
        (replace(corpus_of(["1", "2"] * 2), pairs=(("1", "2"),)), None, r"pair of speakers \(1, 2\)"),
    ],
)
def test_one_of_all_is_not_sent_in_a_circle(corpus: Corpus, count: int | None, what: str):
    with pytest.raises(CallError, match=IMPOSSIBLE.format(what)):
        folds.assign(corpus, count)
    unnamed = replace(corpus, utterances=tuple(replace(u, speaker=None, group=None) for u in corpus.utterances))
    assert len(folds.assign(unnamed, count, random=True).of) == 4  # the way out that it names


def check_classes(corpus: Corpus, count: int, validate: bool = False, **more: str) -> None:
    dealt = folds.assign(corpus, count)
    folds.check_classes(corpus.utterances, corpus.classes, dealt.names, folds.splits(dealt, validate), **more)


def test_a_fold_without_a_class():
    corpus = corpus_of(["1", "1", "2", "2", "3", "3"], labels=list("ababaa"))
    with pytest.raises(WorkError, match=r"\(3 held out\) has no example of 'b' to test: use fewer --folds$"):
        check_classes(corpus, 3)
    with pytest.raises(WorkError, match=r"to test: leave out that flag, or use fewer --folds$"):
        check_classes(corpus, 3, way_out="leave out that flag")
    corpus = corpus_of(["1", "1", "2", "2"], labels=list("abaa"))
    with pytest.raises(WorkError, match=r"no example of 'b' to train on: have it said by more speakers$"):
        check_classes(corpus, 2)


def test_a_class_is_left_out_where_two_are_left():
    corpus = replace(corpus_of(list("112233"), labels=list("abcbcb")), classes=("a", "b", "c"))
    with pytest.raises(WorkError, match=r"'a' to train on: use fewer --folds, or leave the class out with --classes b,c$"):
        check_classes(corpus, 3)


def test_who_lacks_a_class_is_named_where_the_next_fold_is_scored():
    corpus = corpus_of(list("11223344"), labels=list("abaaabab"))  # 2 lacks b
    with pytest.raises(WorkError, match=r"fold 0 \(1 put away, 2 scored\) has no example of 'b' to test"):
        check_classes(corpus, 4, validate=True)


labels_of = st.lists(st.integers(0, 3), min_size=40, max_size=120).map(lambda x: np.array([*x, 0, 1, 2, 3], np.int32))


@given(labels_of, st.integers(0, 5), st.integers(0, 5))
def test_subsets_are_balanced_and_nested(labels: np.ndarray, seed: int, fold: int):
    rows = np.arange(len(labels))
    largest = np.bincount(labels).min()
    previous: set[int] = set()
    for size in range(4, 4 * largest + 1, 4):
        chosen = folds.subset(labels, rows, size, 4, seed, fold)
        assert np.bincount(labels[chosen], minlength=4).tolist() == [size // 4] * 4
        assert previous <= set(chosen.tolist())
        previous = set(chosen.tolist())
    np.testing.assert_array_equal(folds.subset(labels, rows, 0, 4, seed, fold), rows)


def test_seeds_and_folds_draw_other_subsets():
    labels = np.arange(400, dtype=np.int32) % 4
    drawn = {tuple(folds.subset(labels, np.arange(400), 40, 4, seed, fold)) for seed in range(3) for fold in range(3)}
    assert len(drawn) == 9


def test_train_size_that_cannot_be():
    labels = np.array([0] * 10 + [1] * 4 + [0] * 10 + [1] * 6, np.int32)
    dealt = folds.Folds(np.array([0] * 14 + [1] * 16), ("x", "y"), "", True)
    folds.check_train_size(labels, folds.splits(dealt), 8, 2)
    for size in (10, 7, -2):
        with pytest.raises(CallError, match="multiple of the 2 classes and at most 8"):
            folds.check_train_size(labels, folds.splits(dealt), size, 2)


@given(st.integers(1, 70), st.integers(1, 20), st.integers(0, 200), st.integers(0, 60))
def test_batches_go_through_every_row_once_an_epoch(n: int, size: int, start: int, length: int):
    rows = np.arange(100, 100 + n)
    per_epoch = -(-n // size)
    whole = folds.batches(rows, size, 0, 300, 1, 2, 0)
    for epoch in range(300 // per_epoch):
        seen = whole[epoch * per_epoch : (epoch + 1) * per_epoch].ravel()
        assert sorted(seen[seen >= 0]) == rows.tolist()
    stop = min(300, start + length)
    np.testing.assert_array_equal(folds.batches(rows, size, start, max(start, stop), 1, 2, 0), whole[start : max(start, stop)])
