"""What was said, as text: tags of the transcribers, and when two transcripts are the same sentence.

A transcript may hold tags such as [LAUGHTER] or <breath>. They are what a human listener wrote down about sound, so by
default no text model sees them; kept, each is a word of its own.
"""

import re
import unicodedata
from collections.abc import Sequence
from typing import Literal

import numpy as np
from rapidfuzz import process
from rapidfuzz.distance import Indel

Tags = Literal["drop", "keep"]

NEARLY = 0.9
"""From this similarity on, two different normal forms count as nearly the same sentence: the share of characters that neither
has to be taken out nor put in (1 - indel distance / characters of both)."""

_TAG = re.compile(r"\[([^\]\[]*)\]|<([^<>]*)>")
_ROWS = 512  # of similarities in memory at once


def cleaned(text: str | None, tags: Tags = "drop") -> str:
    """The text as a model reads it: single spaces, tags dropped or kept as lower-case words. Empty where nothing is left."""

    def word(found: re.Match) -> str:
        return f" {(found[1] or found[2] or '').lower()} " if tags == "keep" else " "

    return " ".join(unicodedata.normalize("NFC", _TAG.sub(word, text or "")).split())


def normal(text: str | None) -> str:
    """The form in which two transcripts are compared: without tags, punctuation and capitals; apostrophes vanish, so that
    `don't` and `dont` are one; any other punctuation parts words."""
    bare = unicodedata.normalize("NFKC", cleaned(text)).casefold()
    bare = re.sub(r"['’`]", "", bare)
    return " ".join("".join(c if c.isalnum() or unicodedata.combining(c) else " " for c in bare).split())


def occurring(of: Sequence[str], among: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Which normal forms also stand `among` others, word for word and (only where they do not) nearly: bool[n] twice.

    An empty form is like no other.
    """
    known = set(among) - {""}
    same = np.array([form in known for form in of], bool)
    others = sorted({form for form, found in zip(of, same, strict=True) if form and not found})
    against = sorted(known)
    near: set[str] = set()
    for first in range(0, len(others) if against else 0, _ROWS):
        some = others[first : first + _ROWS]
        scores = process.cdist(some, against, scorer=Indel.normalized_similarity, score_cutoff=NEARLY)
        near |= {form for form, row in zip(some, scores, strict=True) if row.max() >= NEARLY}
    return same, np.array([form in near for form in of], bool)
