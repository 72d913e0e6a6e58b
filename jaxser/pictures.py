"""Pictures as PNG files: the same bytes again, with names as they are written, in any script that a font here has; and the two
of every run, its confusion matrix and its reliability."""

import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from io import BytesIO
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import Int
from matplotlib import font_manager
from matplotlib.figure import Figure

FONTS = (
    "DejaVu Sans", "Noto Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans CJK KR", "Noto Sans Devanagari",
    "Noto Sans Bengali", "Noto Sans Tamil", "Noto Sans Thai", "Noto Sans Ethiopic", "Arial Unicode MS", "PingFang SC",
    "Hiragino Sans", "Apple SD Gothic Neo", "Microsoft YaHei", "Yu Gothic", "Malgun Gothic", "Nirmala UI", "WenQuanYi Zen Hei",
)  # fmt: skip
"""Each letter is drawn in the first of these that is installed and has it. matplotlib brings only the first."""


@contextmanager
def drawing() -> Iterator[None]:
    """What is drawn within has its text as it stands: no dollar signs of a class or a path are taken for a formula."""
    with matplotlib.rc_context({"text.parse_math": False, "font.family": _installed_fonts()}):
        yield


@cache
def _installed_fonts() -> list[str]:
    installed = {font.name for font in font_manager.fontManager.ttflist}
    return [name for name in FONTS if name in installed]


def png(figure: Figure, name: str, beside: str, dpi: int = 150) -> bytes:
    """The figure as the bytes of a PNG file. Letters that no font here has are boxes, of which one line on stderr tells: in
    which file, and where they can be read beside that."""
    memory = BytesIO()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        figure.savefig(memory, format="png", dpi=dpi, metadata={"Software": None})
    missing = {str(one.message) for one in caught if "missing from font" in str(one.message)}
    if missing:
        print(f"{name}: no font here has {len(missing)} of the letters; {beside}", file=sys.stderr)
    for one in caught:
        if str(one.message) not in missing:
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
    return memory.getvalue()


@drawing()
def confusion(counts: Int[np.ndarray, "c c"], classes: Sequence[str], title: str) -> bytes:
    """The confusion matrix, the true classes in rows: per cent of each, and counts."""
    shares = counts / counts.sum(1, keepdims=True)
    side = 2.2 + 0.75 * len(classes)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for i, j in np.ndindex(*counts.shape):
        colour = "white" if shares[i, j] > 0.55 else "black"
        axes.text(j, i - 0.08, f"{100 * shares[i, j]:.0f} %", ha="center", va="center", color=colour, fontsize=11)
        axes.text(j, i + 0.24, f"{counts[i, j]}", ha="center", va="center", color=colour, fontsize=7)
    axes.set_xticks(range(len(classes)), classes, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(classes)), classes)
    axes.set_xlabel("recognised as")
    axes.set_ylabel("labelled as")
    axes.set_title(title, fontsize=10)
    axes.spines[:].set_visible(False)
    return png(figure, "confusion.png", "confusion.csv has all names", dpi=160)


@drawing()
def reliability(calibration: Mapping[str, Any]) -> bytes:
    """How often a label is right against the probability it is given, before and after calibration, from the `calibration` of
    summary.json. A dot is a bin, as large as its share of all predictions."""
    figure = Figure(figsize=(4.2, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="grey", linewidth=0.8, linestyle=":")
    for name, words, colour in (("uncalibrated", "as trained", "#b04a3a"), ("calibrated", "with temperatures", "#2a6fb0")):
        bins = zip(*(calibration[name][of] for of in ("confidence", "accuracy", "share")), strict=True)
        sure, right, share = (np.array(column) for column in zip(*(of for of in bins if of[-1]), strict=True))
        axes.plot(sure, right, color=colour, linewidth=1.2, label=words)
        axes.scatter(sure, right, s=8 + 220 * share, color=colour, alpha=0.7, linewidths=0)
    axes.set_xlabel("probability of the label it gives")
    axes.set_ylabel("how often that is right")
    axes.set_xlim(0, 1.02)
    axes.set_ylim(0, 1.02)
    axes.legend(frameon=False, loc="upper left", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    return png(figure, "report.html", "summary.json has all numbers", dpi=160)
