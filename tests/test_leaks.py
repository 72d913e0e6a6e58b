from pathlib import Path

import numpy as np
import pytest

from jaxser import leaks
from jaxser.corpora import Utterance
from jaxser.errors import WorkError
from jaxser.folds import Folds


def said(id: str, speaker: str, label: str = "a") -> Utterance:
    return Utterance(id, Path("x"), label, speaker)


def dealt(*of: int) -> Folds:
    return Folds(np.array(of), ("x", "y"), "", True)


def test_a_speaker_on_both_sides_is_named():
    utterances = [said("u1", "ann"), said("u2", "bob"), said("u3", "ann")]
    leaks.demand_disjoint_speakers(utterances, dealt(0, 1, 0))
    with pytest.raises(WorkError, match=r"'ann' stands in folds 0 \(u1\) and 1 \(u3\)"):
        leaks.demand_disjoint_speakers(utterances, dealt(0, 1, 1))


def test_identical_audio_is_named():
    utterances = [said("u1", "ann"), said("u2", "bob"), said("u3", "ann", "b"), said("u4", "ann")]
    found = leaks.repeated_audio(utterances, dealt(0, 1, 0, 0), {"u1": "s", "u2": "s", "u3": "t", "u4": "t"})
    assert found == ["LEAK: identical audio in folds 0, 1: u1, u2", "identical audio with different labels: u3, u4"]
    assert leaks.repeated_audio(utterances, dealt(0, 1, 0, 0), {"u1": "1", "u2": "2", "u3": "3", "u4": "4"}) == []
