"""A learning curve: UA against the number of labels, the line a + b log n through it, and what that says in words."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from jaxser import metrics, pictures
from jaxser.metrics import Estimate
from jaxser.results import Finished
from jaxser.wording import points

A_CLASS = tuple(round(125 * 2**k) for k in range(-3, 3))
"""Examples of each class at the points of a curve: the paper's 125, its halves and its doubles. The paper gives no x values."""


MANY_DOUBLINGS = 5
"""A line through some sizes says nothing of what lies further beyond them."""


@dataclass(frozen=True)
class Point:
    """UA at one size of balanced training sets, or with all rows (`size` is then their mean number over folds)."""

    size: int
    ua: Estimate


@dataclass(frozen=True)
class Curve:
    """One kind of features: the balanced points by size, and the unbalanced one with all rows."""

    name: str
    random: bool
    points: tuple[Point, ...]
    everything: Point
    all_balanced: bool
    """Whether all rows happen to be equally many of each class."""
    start: float | None
    """a of a + b log n; None, as is all that follows from the line, where there are fewer than two balanced sizes."""
    slope: Estimate | None
    """b, for natural logarithms: points a doubling are b log 2."""
    last_step: tuple[int, int, Estimate] | None
    """The largest balanced size, the one nearest to half of it before it, and the gain between them, paired by speaker."""
    once: bool
    """Whether all was trained with a single seed."""

    @property
    def all_in_words(self) -> str:
        """What the point with all rows is called."""
        return "all rows" if self.all_balanced else "all rows, not balanced"


def sizes_of(classes: int, largest: int) -> list[int]:
    """The balanced sizes of a curve on a corpus that allows `largest`: those of A_CLASS that fit, and the largest itself unless
    it is within an eighth of one of them."""
    fitting = [count * classes for count in A_CLASS if count * classes <= largest]
    if not fitting or largest > fitting[-1] * 1.125:
        fitting.append(largest)
    return fitting


def curve(name: str, balanced: Mapping[int, Finished], everything: Finished) -> Curve:
    """The curve of finished runs that differ in nothing but the size of their training sets."""
    sizes = sorted(balanced)
    counts = {size: balanced[size].counts() for size in sizes}
    start = slope = last = None
    if len(sizes) > 1:
        of_start, of_slope = metrics.log_weights(sizes)
        every = [counts[size] for size in sizes]
        start, slope = metrics.estimate(every, of_start).value, metrics.estimate(every, of_slope)
        half = min(sizes[:-1], key=lambda size: abs(np.log2(sizes[-1] / size) - 1))
        last = (half, sizes[-1], metrics.estimate([counts[half], counts[sizes[-1]]], (-1.0, 1.0)))
    trained_on = [sum(fold["train"].values()) for fold in everything.card["folds"]]
    return Curve(
        name=name,
        random=everything.summary["random_weights"],
        points=tuple(Point(size, metrics.estimate([counts[size]])) for size in sizes),
        everything=Point(round(float(np.mean(trained_on))), metrics.estimate([everything.counts()])),
        all_balanced=all(len(set(fold["train"].values())) == 1 for fold in everything.card["folds"]),
        start=start,
        slope=slope,
        last_step=last,
        once=everything.summary["seeds"] == 1,
    )


def in_words(one: Curve) -> list[str]:
    """How many labels one more point takes, and whether the curve still rises."""
    if one.slope is None:
        return [f"{one.name}: one balanced size only, so how UA grows with labels cannot be said"]
    a_doubling = [None if b is None else 100 * b * np.log(2) for b in (one.slope.value, one.slope.low, one.slope.high)]
    fitted = f"UA = {100 * one.start:.1f} {'+-'[one.slope.value < 0]} {abs(100 * one.slope.value):.2f} log(n) per cent"
    line = f"{one.name}: {fitted} over {_sizes(one)} balanced labels: a doubling adds {a_doubling[0]:.1f} points"
    if one.slope.low is not None:
        line += f" (95 % interval {a_doubling[1]:.1f} to {a_doubling[2]:.1f})"
    largest, slope = one.points[-1].size, one.slope
    if not (slope.excludes_zero and slope.value > 0):
        line += "; how many labels one more point takes cannot be said"
    elif (more := _labels_a_point(slope.value, largest)).startswith("more"):
        line += f"; one more point takes {more}"
    else:  # no interval: that of the line's slope would miss what a bend takes, which so few sizes do not show
        line += f"; beyond {largest:,} one more point takes {more} more if the line goes on, and more where it flattens"
    lines = [line]
    if one.last_step is not None:
        before, after, gain = one.last_step
        text = f"from {before:,} to {after:,} labels: {points(gain.value)} points"
        if gain.low is not None:
            text += f" (95 % interval {points(gain.low)} to {points(gain.high)})"
        if gain.excludes_zero:
            text += ": the curve still rises" if gain.value > 0 else ": the curve falls"
            text += ", as far as one seed can tell" * one.once
        else:
            text += ": whether it still rises these speakers cannot tell"
        lines.append(f"{one.name}: {text}")
    return lines


def _labels_a_point(slope: float, largest: int) -> str:
    doublings = 0.01 / (slope * np.log(2))
    return f"more than {MANY_DOUBLINGS} doublings" if doublings > MANY_DOUBLINGS else f"{largest * (2**doublings - 1):,.0f}"


def _sizes(one: Curve) -> str:
    return f"{one.points[0].size:,} to {one.points[-1].size:,}"


@pictures.drawing()
def picture(curves: Sequence[Curve], published: Mapping[int, float], title: str) -> bytes:
    """All curves with their bands and lines, and published points, as a PNG. Unbalanced points are hollow and unconnected."""
    figure = Figure(figsize=(8.2, 5.2), layout="constrained")
    axes = figure.subplots()
    for one, colour in zip(curves, ("#4d4d4d", "#1f6fb4", "#b8860b", "#7a3e9d"), strict=False):
        sizes = [p.size for p in one.points]
        values = np.array([100 * p.ua.value for p in one.points])
        axes.plot(sizes, values, "o", color=colour, markersize=6)
        if one.points[0].ua.low is not None:
            low, high = (np.array([100 * getattr(p.ua, bound) for p in one.points]) for bound in ("low", "high"))
            axes.fill_between(sizes, low, high, color=colour, alpha=0.13, linewidth=0)
            whole = one.everything
            axes.vlines(whole.size, 100 * whole.ua.low, 100 * whole.ua.high, color=colour, alpha=0.35, linewidth=2)
        name = one.name
        if one.slope is not None:
            ends = np.array([sizes[0], sizes[-1]])
            line = 100 * (one.start + one.slope.value * np.log(ends))
            axes.plot(ends, line, ":" if one.random else "-", color=colour, linewidth=1.4, label=name)
        else:
            axes.plot([], [], "o", color=colour, label=name)
        axes.plot(one.everything.size, 100 * one.everything.ua.value, "o", mfc="white", mec=colour, markersize=7)
    axes.plot([], [], "o", mfc="white", mec="0.4", label=curves[0].all_in_words)
    if published:
        of_paper = list(published)
        axes.plot(of_paper, [100 * published[n] for n in of_paper], "*", color="#c0392b", markersize=11,
                  label="the paper: IEMOCAP, wav2vec-large, MLP")  # fmt: skip
    axes.set_xscale("log", base=2)
    shown = sorted({p.size for one in curves for p in one.points} | {one.everything.size for one in curves} | set(published))
    axes.set_xticks(shown, [f"{n:,}" for n in shown], rotation=45, ha="right", fontsize=8)
    axes.minorticks_off()
    axes.set_xlabel("labelled examples trained on")
    axes.set_ylabel("UA in per cent")
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False, loc="lower right")
    axes.set_title(title, fontsize=10, loc="left")
    return pictures.png(figure, "figure.png", "table.txt has all names")
