"""Word vectors that stand in a text file, one word a line: GloVe (Pennington et al., EMNLP 2014), or any of that form.

The tokens follow the Stanford tokeniser, with which the published vectors were counted, as far as transcripts of speech need
it: lower case, punctuation apart, and the English clitics n't 's 'm 're 've 'll 'd as tokens of their own.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from jaxser.errors import CallError

_TOKEN = re.compile(
    r"n['’]t\b|['’](?:s|m|re|ve|ll|d)\b|\w+?(?=n['’]t\b)"  # clitics, and what stands before n't
    r"|\d+(?:[.,]\d+)+|\w+(?:-\w+)*|\.\.\.|--|[^\w\s]"
)


def tokens(text: str) -> list[str]:
    """The tokens of a transcript."""
    return [found[0].replace("’", "'") for found in _TOKEN.finditer(text.lower())]


def width_of(path: Path) -> int:
    """How many numbers stand in each line. Raises CallError where the first line is none of word vectors."""
    with _opened(path) as file:
        first = file.readline()
        if _is_header(first):
            first = file.readline()
    width = len(first.split()) - 1
    if width < 2:
        raise CallError(f"--text-model {path}, line 1: a word and its numbers were expected, found {_quoted(first)}")
    return width


def vectors(path: Path, words: Iterable[str]) -> dict[str, Float32[np.ndarray, " d"]]:
    """The vectors of those words that the file has; the file is gone through once.

    Raises CallError, naming the line, where one has another count of numbers than the first or, among the lines of the
    words wanted, something that is no number. A word may hold spaces: numbers count from the right.
    """
    wanted, width, found = set(words), width_of(path), {}
    for number, line in _lines(path):
        spaces = line.count(" ")
        word, _, rest = line.partition(" ")
        if spaces > width:
            word, *numbers = line.rsplit(" ", width)
            rest = " ".join(numbers)
        if spaces < width or (_is_number(word.rpartition(" ")[2]) and spaces > width):
            raise CallError(
                f"--text-model {path}, line {number}: {spaces} numbers where the first line has {width}: {_quoted(line)}"
            )
        if word in wanted and word not in found:
            try:
                with np.errstate(over="ignore"):  # what is not finite is told below
                    found[word] = np.array(rest.split(" "), np.float32)
            except ValueError:
                raise CallError(f"--text-model {path}, line {number}: not all numbers: {_quoted(line)}") from None
            if not np.isfinite(found[word]).all():
                raise CallError(f"--text-model {path}, line {number}: not all finite numbers: {_quoted(line)}")
    return found


def embedded(found: dict[str, Float32[np.ndarray, " d"]], of: list[str], width: int) -> Float32[np.ndarray, "k d"]:
    """The vectors of tokens. One that the file does not have is the mean of its parts where it is hyphenated and they are
    known, else zeros: the word keeps its place and says nothing."""
    rows = np.zeros((len(of), width), np.float32)
    for row, token in zip(rows, of, strict=True):
        parts = [found[part] for part in (token, *token.split("-")) if part in found]
        if token in found:
            row[:] = found[token]
        elif parts:
            row[:] = np.mean(parts, 0)
    return rows


def unknown(found: dict[str, Float32[np.ndarray, " d"]], of: Iterable[str]) -> list[str]:
    """The tokens without a vector of their own or of a part."""
    return [token for token in of if not any(part in found for part in (token, *token.split("-")))]


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    with _opened(path) as file:
        for number, line in enumerate(file, 1):
            if number == 1 and _is_header(line):
                continue
            yield number, line.rstrip()


def _opened(path: Path):
    if not path.is_file():
        raise CallError(
            f"--text-model {path}: no such file; word vectors as text are at https://nlp.stanford.edu/projects/glove"
        )
    return path.open(encoding="utf-8", errors="replace", newline="\n")


def _is_header(line: str) -> bool:
    # word2vec's text form begins with the number of words and of dimensions.
    fields = line.split()
    return len(fields) == 2 and all(field.isdigit() for field in fields)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _quoted(line: str) -> str:
    return repr(line[:60].rstrip() + "…" * (len(line) > 60))
