from pathlib import Path

import numpy as np
import pytest

from jaxser import extract_text, glove
from jaxser.errors import CallError

LINES = ["the 0.1 0.2 0.3", "door -1 0 1e-2", ". 1 1 1", "n't 2 2 2", "do 3 3 3", ". . . 4 4 4", "mother 1 0 0", "law 0 1 0"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "vectors.txt"
    path.write_text("\n".join(LINES) + "\n")
    return path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Don't do it!", "do n't do it !"),
        ("I can\u2019t; it's 3.5 o'clock...", "i ca n't ; it 's 3.5 o ' clock ..."),
        ("mother-in-law -- she'd've", "mother-in-law -- she 'd 've"),
        ("Schöne Grüße", "schöne grüße"),
        ("  ", ""),
    ],
)
def test_tokens(text: str, expected: str):
    assert glove.tokens(text) == expected.split()


def test_only_the_words_asked_for(path: Path):
    found = glove.vectors(path, ["door", "the", ". . .", "nothing"])
    assert set(found) == {"door", "the", ". . ."}
    np.testing.assert_array_equal(found["door"], np.array([-1, 0, 0.01], np.float32))
    np.testing.assert_array_equal(found[". . ."], np.full(3, 4, np.float32))
    assert glove.width_of(path) == 3


def test_a_word_that_is_not_in_the_file(path: Path):
    found = glove.vectors(path, ["the", "mother", "in", "law", "zzz", "mother-in-law"])
    rows = glove.embedded(found, ["the", "zzz", "mother-in-law"], 3)
    np.testing.assert_allclose(rows, [[0.1, 0.2, 0.3], [0, 0, 0], [0.5, 0.5, 0]])
    assert glove.unknown(found, ["the", "zzz", "mother-in-law"]) == ["zzz"]


def test_the_header_of_word2vec(path: Path):
    path.write_text("2 3\n" + "\n".join(LINES[:2]) + "\n")
    assert glove.width_of(path) == 3
    assert set(glove.vectors(path, ["the", "2"])) == {"the"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("short 1 2", "line 3: 2 numbers where the first line has 3: 'short 1 2'"),
        ("long 1 2 3 4", "line 3: 4 numbers where the first line has 3"),
        ("word 1 x 3", "line 3: not all numbers"),
        ("word 1 nan 3", "line 3: not all finite numbers"),
        ("alone", "line 3: 0 numbers"),
    ],
)
def test_malformed_lines(path: Path, line: str, message: str):
    path.write_text("\n".join([*LINES[:2], line, *LINES[2:]]) + "\n")
    with pytest.raises(CallError, match=message):
        glove.vectors(path, ["the", "word"])


@pytest.mark.parametrize("content", ["", "just some prose\n", "word\n"])
def test_no_word_vectors(path: Path, content: str):
    path.write_text(content)
    if content.startswith("just"):
        with pytest.raises(CallError, match="not all numbers"):
            glove.vectors(path, ["just"])
    else:
        with pytest.raises(CallError, match="line 1: a word and its numbers were expected"):
            glove.width_of(path)


def test_no_such_file(tmp_path: Path):
    with pytest.raises(CallError, match="no such file"):
        glove.width_of(tmp_path / "none.txt")


def test_entries_of_texts(path: Path, capsys: pytest.CaptureFixture[str]):
    tasks = [("a", "Don't the zzz."), ("b", "door")]
    ((first, second),) = extract_text.glove_compute(extract_text.plan(tasks, 1), 1, False, path, 3)
    assert (first.words, second.words) == (("do", "n't", "the", "zzz", "."), ("door",))
    np.testing.assert_array_equal(first.frames[[0, 1, 3]], np.array([[3] * 3, [2] * 3, [0] * 3], np.float32))
    assert "1 of 6 words are not in it and become zeros (zzz, ...)" in capsys.readouterr().err
