"""Learning curves: which sizes, the line through them, and what is said of it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from jaxser import curves
from jaxser.metrics import Estimate
from jaxser.results import Finished, Prediction

SPEAKERS, EACH = 12, 40


def run(share: float, size: int, spread: float = 0.0, seed: int = 0, apart: int = 0) -> Finished:
    """A run of two classes in four folds whose every speaker has `share` of each class right, give or take `spread`; of the
    three of each fold one has `apart` utterances more right, one as many fewer."""
    random = np.random.default_rng(seed)
    predictions = {}
    for speaker in range(SPEAKERS):
        own = np.clip(share + spread * random.normal(), 0, 1)
        for i in range(2 * EACH):
            label = "ab"[i % 2]
            right = i // 2 < round(own * EACH) + apart * (speaker // 4 - 1)
            guess = label if right else "ba"[i % 2]
            predictions[f"{speaker}-{i}"] = Prediction(label, f"s{speaker:02}", "", speaker % 4, {0: guess})
    summary = {"classes": ["a", "b"], "seeds": 1, "interval_unit": "speaker", "random_weights": False}
    return Finished(Path("x"), summary, {"folds": [{"train": {"a": size // 2, "b": size // 2}}]}, predictions)


@pytest.mark.parametrize(
    ("classes", "largest", "expected"),
    [
        (4, 3104, [64, 124, 248, 500, 1000, 2000, 3104]),  # IEMOCAP
        (4, 576, [64, 124, 248, 500, 576]),
        (4, 520, [64, 124, 248, 500]),  # the largest would tell next to nothing beyond 500
        (4, 40, [40]),
        (2, 32, [32]),
    ],
)
def test_sizes(classes: int, largest: int, expected: list[int]):
    assert curves.sizes_of(classes, largest) == expected


def test_line_and_words_by_hand():
    # 0.50, 0.55, 0.60 at 100, 200, 400: five points a doubling, and 1 point more takes 400 (2^0.2 - 1) = 59 labels.
    sizes = {100: 0.50, 200: 0.55, 400: 0.60}
    one = curves.curve("ours", {n: run(share, n, apart=n // 400) for n, share in sizes.items()}, run(0.6, 440))
    assert [round(p.ua.value, 6) for p in one.points] == [0.5, 0.55, 0.6]
    assert one.slope.value == pytest.approx(0.05 / np.log(2))
    assert one.start == pytest.approx(0.5 - 0.05 * np.log2(100))
    assert one.everything.size == 440
    assert one.last_step[:2] == (200, 400)
    first, second = curves.in_words(one)
    assert "over 100 to 400 balanced labels: a doubling adds 5.0 points" in first
    assert first.endswith("beyond 400 one more point takes 59 more if the line goes on, and more where it flattens")
    # Twelve speakers whose gains differ by 2.5 points up and down: 2.201 sqrt(8 0.025^2 / 11 / 12), and dealt evenly.
    assert second.endswith(
        "200 to 400 labels: +5.0 points (95 % interval +3.6 to +6.4): the curve still rises, as far as one seed can tell"
    )


def test_whether_it_rises_is_asked_over_a_doubling():
    # 300 to 400 is no doubling: from 190, the size nearest to the half of 400.
    sizes = {100: 0.50, 190: 0.55, 300: 0.60, 400: 0.60}
    one = curves.curve("ours", {n: run(share, n) for n, share in sizes.items()}, run(0.6, 440))
    assert one.last_step[:2] == (190, 400)
    assert one.last_step[2].value == pytest.approx(0.05)


def test_what_varies_between_speakers_too_much_is_not_said():
    noisy = {n: run(0.6, n, 0.15, seed) for seed, n in enumerate((100, 200, 400))}
    first, second = curves.in_words(curves.curve("ours", noisy, run(0.6, 440)))
    assert first.endswith("how many labels one more point takes cannot be said")
    assert second.endswith("whether it still rises these speakers cannot tell")


def test_slope_interval_pairs_speakers():
    # Speakers differ much from each other, by the same at each size: the slope has no error, each score has.
    steady = {n: run(share, n, 0.1, apart=n // 400) for n, share in {100: 0.50, 200: 0.55, 400: 0.60}.items()}
    one = curves.curve("ours", steady, run(0.6, 440))
    assert one.points[0].ua.high - one.points[0].ua.low > 0.05
    assert one.slope.high - one.slope.low < 0.03
    same = curves.curve("ours", {n: run(share, n) for n, share in {100: 0.50, 200: 0.55}.items()}, run(0.6, 440))
    assert same.slope.low is None  # all speakers gain as much by chance: that makes nothing certain


def test_one_size_has_no_line():
    one = curves.curve("ours", {40: run(0.5, 40)}, run(0.6, 44))
    assert one.slope is None
    assert curves.in_words(one) == ["ours: one balanced size only, so how UA grows with labels cannot be said"]
    assert curves.picture([one], {}, "title").startswith(b"\x89PNG")


def test_a_line_that_is_all_but_flat_promises_nothing():
    flat = {n: run(share, n) for n, share in {100: 0.500, 200: 0.500, 400: 0.525}.items()}
    one = curves.curve("ours", flat, run(0.6, 440))
    assert one.slope.value > 0
    nearly = replace(one, slope=Estimate(1e-5, 0.5e-5, 2e-5))
    assert curves.in_words(nearly)[0].endswith("one more point takes more than 5 doublings")


def test_all_rows_may_be_balanced():
    sizes = {n: run(0.5, n) for n in (100, 200)}
    assert curves.curve("ours", sizes, run(0.6, 440)).all_in_words == "all rows"
    everything = run(0.6, 440)
    everything = replace(everything, card={"folds": [{"train": {"a": 200, "b": 240}}]})
    assert curves.curve("ours", sizes, everything).all_in_words == "all rows, not balanced"


def test_no_interval_no_claim():
    point = curves.Point(100, Estimate(0.5, None, None))
    one = curves.Curve(
        "ours", False, (point, point), point, True, 0.1, Estimate(0.05, None, None), (50, 100, Estimate(0.1, None, None)), False
    )
    text = " ".join(curves.in_words(one))
    assert "interval" not in text
    assert "cannot tell" in text
    assert curves.picture([one], {500: 0.585}, "title").startswith(b"\x89PNG")
