import string

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxser import transcripts

CHANGES = st.lists(st.sampled_from(["upper", "comma", "laughter", "spaces"]), max_size=4)
WORDS = st.lists(st.text(string.ascii_lowercase + "äß", min_size=1, max_size=8), min_size=1, max_size=12)


@pytest.mark.parametrize(
    ("text", "dropped", "kept"),
    [
        ("[LAUGHTER] Oh  well.", "Oh well.", "laughter Oh well."),
        ("No<breath>way", "No way", "No breath way"),
        ("[BREATHING]", "", "breathing"),
        ("a: b [x] : c", "a: b : c", "a: b x : c"),
        (None, "", ""),
        (" \n", "", ""),
        ("2 < 3 and [so on", "2 < 3 and [so on", "2 < 3 and [so on"),
    ],
)
def test_tags(text: str | None, dropped: str, kept: str):
    assert transcripts.cleaned(text) == dropped
    assert transcripts.cleaned(text, "keep") == kept


@given(WORDS, CHANGES)
def test_what_does_not_change_the_sentence(words: list[str], changes: list[str]):
    text = " ".join(words)
    for change in changes:
        text = {
            "upper": text.upper(),
            "comma": text.replace(" ", ", ") + "!",
            "laughter": "[LAUGHTER] " + text,
            "spaces": text.replace(" ", "   "),
        }[change]
    assert transcripts.normal(text) == transcripts.normal(" ".join(words))


def test_apostrophes_and_hyphens():
    assert transcripts.normal("Don\u2019t - you know: re-do it.") == "dont you know re do it"


def test_word_for_word_and_nearly():
    among = ["we can meet at the library around noon", "i do not know", "", "no"]
    of = [
        "we can meet at the library around noon",  # the same
        "we can meet at the library about noon",  # 4 of 74 characters taken out, 3 put in: similarity 1 - 7 / 75
        "they are waiting at the office",  # another sentence
        "",  # says nothing, so repeats nothing
        "know",
    ]
    same, near = transcripts.occurring(of, among)
    assert same.tolist() == [True, False, False, False, False]
    assert near.tolist() == [False, True, False, False, False]


@given(st.lists(st.sampled_from("abcdefgh"), max_size=8), st.lists(st.sampled_from("abcdefgh"), max_size=8))
def test_nearly_is_symmetric_and_apart_from_the_same(one: list[str], other: list[str]):
    one, other = [c * 12 + "xyz" for c in one], [c * 12 + "xyw" for c in other]
    same, near = transcripts.occurring(one, other)
    assert not (same & near).any()
    back = transcripts.occurring(other, one)[1]
    assert near.any() == back.any()
    np.testing.assert_array_equal(near, [form.replace("z", "w") in other for form in one])
