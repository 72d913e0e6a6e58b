import csv
import dataclasses
from collections import defaultdict
from io import BytesIO
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from conftest import full_disk

from jaxser import alignments
from jaxser.alignments import Alignment

WORDS = ("wonder", "##ful", 'he said, "no"', "$5", "to$")
"""A piece, a comma with quotes, and two dollar signs, between which matplotlib would set a formula."""


def an_alignment(words: tuple[str, ...] = WORDS, frames: int = 7, heard: bool = True) -> Alignment:
    """Frames of growing length, and words that each listen mostly to one frame, later words to later ones."""
    edges = np.cumsum([0, *np.linspace(0.1, 0.2, frames)])
    logits = np.random.default_rng(1).normal(0, 0.1, (len(words), frames))
    logits[np.arange(len(words)), np.arange(len(words)) * frames // max(1, len(words))] += 1
    weights = (np.exp(logits) / np.exp(logits).sum(1, keepdims=True)).astype(np.float32)
    waveform = np.sin(np.arange(int(16_000 * edges[-1])) / 20).astype(np.float32)
    return Alignment("u$1_a$", "sad", "angry", 0.61, words, weights, edges[:-1], edges[1:], waveform if heard else None)


def peaked(frames: int, places: list[int], times: float) -> np.ndarray:
    """Weights of words that each give one frame `times` the even share and the others the rest alike."""
    weights = np.full((len(places), frames), (1 - times / frames) / (frames - 1), np.float32)
    weights[np.arange(len(places)), places] = times / frames
    return weights


def pixels(picture: bytes) -> np.ndarray:
    return matplotlib.image.imread(BytesIO(picture))[..., :3]


def test_typical_is_the_median_of_the_recognised():
    ids = ["e", "d", "c", "b", "a", "g", "f", "h"]
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 2])
    probabilities = np.array(
        [
            [0.9, 0.1, 0.0],  # e: class 0, recognised
            [0.6, 0.3, 0.1],  # d: class 0, recognised, the lower median of 0.5, 0.6, 0.8 and 0.9
            [0.8, 0.2, 0.0],  # c: class 0, recognised
            [0.5, 0.3, 0.2],  # b: class 0, recognised
            [0.7, 0.2, 0.1],  # a: class 1, taken for 0
            [0.1, 0.7, 0.2],  # g: class 1, recognised
            [0.2, 0.7, 0.1],  # f: class 1, recognised as surely, and an earlier id
            [0.5, 0.4, 0.1],  # h: class 2, taken for 0
        ]
    )
    assert alignments.typical(ids, labels, probabilities, ["x", "y", "z"]) == [1, 6]
    assert alignments.typical(ids[3:], labels[3:], probabilities[3:], ["x", "y", "z"]) == [0, 3]


@pytest.mark.parametrize("seed", range(5))
def test_typical_does_not_see_the_order_of_rows(seed: int):
    draws = np.random.default_rng(seed)
    ids = [f"u{i}" for i in range(60)]
    labels = draws.integers(0, 4, 60)
    probabilities = draws.dirichlet(np.ones(4), 60).round(1)  # many are equal
    chosen = [ids[row] for row in alignments.typical(ids, labels, probabilities, "wxyz")]
    assert len(chosen) >= 3
    order = draws.permutation(60)
    again = alignments.typical([ids[i] for i in order], labels[order], probabilities[order], "wxyz")
    assert [ids[order[row]] for row in again] == chosen


def test_table_holds_every_weight(tmp_path: Path):
    one = an_alignment()
    other = dataclasses.replace(an_alignment(("a", "b"), frames=300), id="v, 2")
    alignments.write(tmp_path, [one, other])
    with (tmp_path / "alignment.csv").open(encoding="utf-8", newline="") as file:
        header, *lines = csv.reader(file)
    assert header == ["id", "word_number", "word", "start", "end", "weight"]
    assert len(lines) == 5 * 7 + 2 * 300
    by_word = defaultdict(list)
    for name, number, word, start, end, weight in lines:
        by_word[name, int(number), word].append((float(start), float(end), float(weight)))
    expected = [("u$1_a$", i, word) for i, word in enumerate(WORDS, 1)] + [("v, 2", 1, "a"), ("v, 2", 2, "b")]
    assert list(by_word) == expected
    for (name, number, _), rows in by_word.items():
        whole = one if name == one.id else other
        starts, ends, weights = np.array(rows).T
        assert weights.sum() == pytest.approx(1, abs=1e-5)
        np.testing.assert_allclose(weights, whole.weights[number - 1], atol=1e-8)
        np.testing.assert_allclose(starts, whole.starts, atol=0.0005001)
        np.testing.assert_allclose(ends, whole.ends, atol=0.0005001)


def test_folder_has_both_whole_or_neither(tmp_path: Path):
    alignments.write(tmp_path, [an_alignment()])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alignment.csv", "alignment.png"]
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}

    with full_disk(100), pytest.raises(OSError, match=r"alignment\.csv"):
        alignments.write(tmp_path, [an_alignment()])
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before

    broken = dataclasses.replace(an_alignment(), words=("one",))
    with pytest.raises(TypeError, match="Dimensions"):
        alignments.write(tmp_path, [broken])
    assert {path: path.read_bytes() for path in before} == before


def test_picture_is_a_picture_and_the_same_bytes_again():
    picture = alignments.picture([an_alignment()])
    assert picture[:8] == b"\x89PNG\r\n\x1a\n"
    assert b"Software" not in picture
    assert pixels(picture).std() > 0.05
    assert alignments.picture([an_alignment()]) == picture


@pytest.mark.parametrize("heard", [True, False])
def test_picture_grows_with_words_and_utterances(heard: bool):
    heights = [pixels(alignments.picture([an_alignment(("word",) * k, heard=heard)])).shape[0] for k in (10, 20, 40)]
    # An eighth of an inch at 150 dots is what a line of small print needs.
    assert (heights[2] - heights[1]) / 20 >= 150 / 8
    assert (heights[1] - heights[0]) / 10 >= 150 / 8
    two = alignments.picture([an_alignment(("word",) * 10, heard=heard)] * 2)
    assert pixels(two).shape[0] == pytest.approx(2 * heights[0], abs=2)


def test_words_stand_in_reading_order_at_their_rows_and_can_be_read():
    made = alignments.figure([an_alignment((*WORDS, "##", "x" * 100))])
    made.canvas.draw()
    axes = next(axes for axes in made.axes if axes.get_yticklabels() and axes.collections and axes.get_xlabel())
    texts = [label.get_text() for label in axes.get_yticklabels()]
    assert texts[:6] == ["wonder", "·ful", 'he said, "no"', "$5", "to$", "##"]
    assert texts[6].startswith("xxx")
    assert len(texts[6]) < 30
    heights = [label.get_window_extent().y0 for label in axes.get_yticklabels()]
    assert heights == sorted(heights, reverse=True)
    assert not any(label.get_parse_math() for label in axes.get_yticklabels())


def test_title_says_which_utterance_and_what_was_recognised():
    for heard in (True, False):
        made = alignments.figure([an_alignment(heard=heard), dataclasses.replace(an_alignment(), id="path/" * 40 + "end.wav")])
        titles = [axes.title if axes.get_title() else axes._left_title for axes in made.axes]
        first, second = [title for title in titles if title.get_text()]
        assert not first.get_parse_math()
        assert all(part in first.get_text() for part in ("u$1_a$", "sad", "angry", "61 %"))
        assert "path/end.wav" in second.get_text()
        assert len(second.get_text()) < 110


def test_frames_lie_at_their_seconds():
    one = an_alignment(("a", "b"), frames=5)
    mesh = maps_of(alignments.figure([one]))[0]
    np.testing.assert_allclose(mesh.get_coordinates()[0, :, 0], np.cumsum([0, 0.1, 0.125, 0.15, 0.175, 0.2]))
    # Frames of 0.4 s that begin each 0.2 s: the middle of what two share.
    overlapping = dataclasses.replace(one, starts=0.2 * np.arange(5), ends=0.2 * np.arange(5) + 0.4)
    mesh = maps_of(alignments.figure([overlapping]))[0]
    np.testing.assert_allclose(mesh.get_coordinates()[0, :, 0], [0, 0.3, 0.5, 0.7, 0.9, 1.2])


def test_waveform_and_map_share_their_seconds():
    one = an_alignment(frames=20)
    longer = dataclasses.replace(one, waveform=np.tile(one.waveform, 2))  # frames end before the sound does
    made = alignments.figure([longer])
    limits = [axes.get_xlim() for axes in made.axes if axes.get_xlim()[1] > 1]
    assert len(limits) == 2
    assert limits[0] == limits[1]
    assert limits[0] == pytest.approx((0, 6), abs=0.01)
    made.canvas.draw()
    edges = [axes.get_position().intervalx for axes in made.axes if axes.get_xlim() == limits[0]]
    np.testing.assert_allclose(*edges)


def maps_of(made) -> list:
    return [mesh for axes in made.axes if axes.get_xlabel() == "seconds" for mesh in axes.collections]


def test_colours_say_times_the_even_share_on_one_scale():
    diffuse = dataclasses.replace(an_alignment(("a", "b"), 10), weights=peaked(10, [1, 8], 1.8))
    flat = dataclasses.replace(an_alignment(("a", "b"), 4), weights=np.full((2, 4), 0.25, np.float32))
    made = alignments.figure([diffuse, flat])
    first, second = maps_of(made)
    shown = np.ma.getdata(first.get_array()).reshape(2, 10)
    assert shown[0, 1] == pytest.approx(1.8)
    assert shown[0, 0] == pytest.approx(8.2 / 9)
    np.testing.assert_allclose(np.ma.getdata(second.get_array()), 1)
    assert first.get_clim() == second.get_clim() == pytest.approx((0.5, 2))
    bars = [axes for axes in made.axes if axes.get_ylabel() == "times the even share"]
    assert len(bars) == 2
    assert [label.get_text() for label in bars[0].get_yticklabels()] == ["0.5", "0.71", "1", "1.4", "2"]


@pytest.mark.parametrize("heard", [True, False])
def test_early_words_look_left_above_late_ones(heard: bool):
    one = dataclasses.replace(an_alignment(("a", "b"), 10, heard), weights=peaked(10, [1, 8], 3.0))
    image = pixels(alignments.picture([one]))
    image = image[:, : int(0.9 * image.shape[1])]  # without the colour bar
    y, x = np.nonzero((image[..., 0] > image[..., 1] + 0.4) & (image[..., 0] > image[..., 2] + 0.4))
    early = x < image.shape[1] / 2
    assert early.sum() > 1000
    assert (~early).sum() > 1000
    assert y[early].max() <= y[~early].min()


def test_letters_that_no_font_has_are_told(capsys: pytest.CaptureFixture[str]):
    alignments.picture([an_alignment(("слово", "\U000103a0\U000103a1"))])  # Cyrillic, which is there, and Old Persian
    told = "alignment.png: no font here has 2 of the letters; alignment.csv has all words\n"
    assert capsys.readouterr().err == told


def test_little_is_enough():
    for one in (
        an_alignment(("yes",), frames=1),
        an_alignment(("yes",), frames=1, heard=False),
        an_alignment((), frames=3),
        dataclasses.replace(an_alignment(), waveform=np.zeros(5, np.float32)),
        dataclasses.replace(an_alignment(("a",), 3), weights=np.array([[0, 0, 1]], np.float32)),
    ):
        assert np.isfinite(pixels(alignments.picture([one]))).all()


def test_nobody_to_show_is_said(tmp_path: Path):
    alignments.write(tmp_path, [])
    assert (tmp_path / "alignment.csv").read_text() == "id,word_number,word,start,end,weight\n"
    assert pixels((tmp_path / "alignment.png").read_bytes()).min() < 0.5
