from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from jaxser import leaks
from jaxser.corpora import Utterance
from jaxser.errors import WorkError
from jaxser.folds import Folds, Split


def said(id: str, speaker: str | None, label: str = "a", text: str | None = None) -> Utterance:
    return Utterance(id, Path("x"), label, speaker, text=text)


def dealt(*of: int) -> Folds:
    return Folds(np.array(of), ("x", "y"), "", True)


def test_a_speaker_on_both_sides_is_named():
    utterances = [said("u1", "ann"), said("u2", "bob"), said("u3", "ann")]
    leaks.speakers_apart(utterances, dealt(0, 1, 0))
    with pytest.raises(WorkError, match=r"'ann' stands in folds 0 \(u1\) and 1 \(u3\)"):
        leaks.speakers_apart(utterances, dealt(0, 1, 1))


def test_speakers_that_nobody_names_cannot_be_looked_for():
    assert leaks.speakers_apart([said("u1", "ann"), said("u2", "bob")], dealt(0, 1)).found == []
    (line,) = leaks.speakers_apart([said("u1", None), said("u2", None)], dealt(0, 1)).found
    assert "not looked for" in line


def test_a_group_on_both_sides_is_named():
    utterances = [replace(said(f"u{i}", f"s{i}"), group=group) for i, group in enumerate(["g1", "g1", "g2", None])]
    assert leaks.groups_apart(utterances, dealt(0, 0, 1, 1)).found == []
    (line,) = leaks.groups_apart(utterances, dealt(0, 1, 1, 1)).found
    assert line.startswith("groups on both sides of a fold: g1 (")


def test_identical_audio_is_named():
    utterances = [said("u1", "ann"), said("u2", "bob"), said("u3", "ann", "b"), said("u4", "ann")]
    found = leaks.repeated_audio(utterances, dealt(0, 1, 0, 0), {"u1": "s", "u2": "s", "u3": "t", "u4": "t"}).found
    assert found == ["LEAK: identical audio in folds 0, 1: u1, u2", "identical audio with different labels: u3, u4"]
    assert leaks.repeated_audio(utterances, dealt(0, 1, 0, 0), {"u1": "1", "u2": "2", "u3": "3", "u4": "4"}).found == []


TEXTS = [
    "Get out!",
    "get out",
    "[LAUGHTER] Get out.",
    "I will be at the station around noon.",
    "I will be at the station about noon.",
]
TEXTS += [None, None, "Something else altogether"]
SPLITS = [Split(np.array([1, 2, 4, 6, 7]), np.array([0, 3, 5])), Split(np.array([0, 3, 5]), np.array([1, 2, 4, 6, 7]))]


def test_repeated_text_by_fold():
    utterances = [said(f"u{i}", "ann", text=text) for i, text in enumerate(TEXTS)]
    found = leaks.repeated_text(utterances, SPLITS)
    assert found == [
        {"fold": 0, "test": 3, "repeated": 1, "nearly": 1},
        {"fold": 1, "test": 5, "repeated": 2, "nearly": 1},
    ]
    (line,) = leaks.repeated_text_in_words(found).found
    assert "of 8 test transcripts 3 also stand in training word for word, 2 more nearly (by fold: 1+1 of 3, 2+1 of 5)" in line
    kept = leaks.without_repeated_text(utterances, SPLITS)
    assert [rows.train.tolist() for rows in kept] == [[4, 6, 7], [3, 5]]
    assert [rows.test.tolist() for rows in kept] == [rows.test.tolist() for rows in SPLITS]
    assert [fold["repeated"] for fold in leaks.repeated_text(utterances, kept)] == [0, 0]


def test_nothing_repeated():
    utterances = [said("u0", "ann", text="one sentence"), said("u1", "bob", text="quite another one")]
    found = leaks.repeated_text(utterances, [Split(np.array([0]), np.array([1]))])
    assert leaks.repeated_text_in_words(found).found == []
