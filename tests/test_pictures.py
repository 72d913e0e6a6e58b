from io import BytesIO

import matplotlib
import matplotlib.image
import numpy as np
import pytest

from jaxser import pictures

COUNTS = np.array([[9, 1], [4, 6]])


def test_names_are_drawn_as_they_are_written():
    with pictures.drawing():
        assert not matplotlib.figure.Figure().text(0, 0, "$x$").get_parse_math()
    # The first would be a formula, the second a broken one.
    as_written = pictures.confusion(COUNTS, ["$5 to $9", r"$\frac$"], "of $a_b$")
    assert as_written != pictures.confusion(COUNTS, ["5 to 9", r"\frac"], "of a_b")


def test_what_is_set_for_drawing_stays_there():
    before = dict(matplotlib.rcParams)
    pictures.confusion(COUNTS, ["low", "high"], "title")
    assert dict(matplotlib.rcParams) == before


def test_letters_that_no_font_has_are_told(capsys: pytest.CaptureFixture[str]):
    pictures.confusion(COUNTS, ["грусть", "\U000103a0\U000103a1"], "")  # Cyrillic, which is there, and Old Persian
    assert capsys.readouterr().err == "confusion.png: no font here has 2 of the letters; confusion.csv has all names\n"


def test_a_cell_has_the_colour_of_its_share_of_its_class():
    rows = np.array([[90, 10], [400, 600]])
    image = matplotlib.image.imread(BytesIO(pictures.confusion(rows, ["low", "high"], "")))[..., :3]

    def middle(share: float) -> np.ndarray:
        there = np.argwhere(np.abs(image - matplotlib.colormaps["Blues"](share)[:3]).max(-1) < 0.01)
        assert len(there) > 1000
        return there.mean(0)

    (top_left, top_right), (bottom_left, bottom_right) = (map(middle, of) for of in ((0.9, 0.1), (0.4, 0.6)))
    assert top_left[0] < bottom_left[0]
    assert top_right[0] < bottom_right[0]
    assert top_left[1] < top_right[1]
    assert bottom_left[1] < bottom_right[1]


def test_the_same_bytes_again():
    assert pictures.confusion(COUNTS, ["low", "high"], "t") == pictures.confusion(COUNTS, ["low", "high"], "t")
