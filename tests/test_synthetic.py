from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

from jaxser import corpora, synthetic


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic.make(tmp_path_factory.mktemp("cache"))


def test_shape(root: Path):
    corpus = corpora.read("synthetic", root, "paper")
    assert len(corpus.utterances) >= 400
    assert len({u.speaker for u in corpus.utterances}) == 10
    assert len({u.group for u in corpus.utterances}) == 5
    assert sum(dict(corpus.outside).values()) > 0
    assert all(u.text for u in corpus.utterances)
    assert not corpus.left_out
    assert not corpus.notes  # the release's counts say nothing of it
    assert min(Counter((u.group, u.label) for u in corpus.utterances).values()) >= 10


def test_durations(root: Path):
    seconds = [soundfile.info(path).duration for path in root.rglob("*.wav")]
    assert min(seconds) >= 0.8
    assert max(seconds) <= 8.0
    assert max(seconds) > 5.0  # some are cropped


def test_same_bytes_again(root: Path, tmp_path: Path):
    again = synthetic.make(tmp_path)
    files = sorted(path.relative_to(root) for path in root.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(again) for path in again.rglob("*") if path.is_file())
    assert all((root / name).read_bytes() == (again / name).read_bytes() for name in files)


def test_a_broken_making_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(synthetic, "_write_session", lambda folder, session: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        synthetic.make(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_words_tell_as_much_as_is_said_of_them():
    # Whoever knows the lists: a sentence's first piece says whose it is, of two for a complaint, of four for a bland one.
    random = np.random.default_rng(0)
    owners = {piece: set() for columns in (synthetic.BLAND, *synthetic.WORDS.values()) for piece in columns[0]}
    for label, columns in synthetic.WORDS.items():
        for piece in columns[0]:
            owners[piece] |= {"ang", "sad"} if label == "complaint" else {label}
    right = []
    for label in ("neu", "hap", "ang", "sad"):
        for _ in range(5000):
            sentence = synthetic._sentence(random, label)
            (found,) = (of for piece, of in owners.items() if sentence.startswith(piece.rstrip(",")))
            assert not found or label in found
            right.append(1 / len(found) if found else 1 / 4)
    assert np.mean(right) == pytest.approx(2 / 3 * 0.9 + 1 / 3 * 0.25, abs=0.01)
