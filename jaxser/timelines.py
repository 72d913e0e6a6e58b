"""A long recording's classes over time, as a picture."""

import re
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from jaxser import pictures
from jaxser.digests import text_digest
from jaxser.files import write_bytes
from jaxser.labels import Row


def draw_all(folder: Path, rows: Sequence[Row], classes: Sequence[str]) -> list[Path]:
    """A picture for each recording that has rows, named after it; where two have one name, with a digest of the path."""
    folder.mkdir(parents=True, exist_ok=True)
    by_path: dict[str, list[Row]] = {}
    for row in rows:
        by_path.setdefault(row.path, []).append(row)
    stems = {path: re.sub(r"[^\w.-]+", "_", Path(path).stem)[:100] or "recording" for path in by_path}
    made = []
    for path, of in by_path.items():
        twice = list(stems.values()).count(stems[path]) > 1
        name = stems[path] + (f"-{text_digest(path)[:8]}" if twice else "")
        made.append(folder / f"{name}.png")
        write_bytes(made[-1], draw(Path(path).name, of, classes))
    return made


@pictures.drawing()
def draw(title: str, rows: Sequence[Row], classes: Sequence[str]) -> bytes:
    """A PNG: one band a class, as high as its probability, window by window; what has no label stays empty."""
    colours = matplotlib.colormaps["tab10" if len(classes) <= 10 else "tab20"].colors
    end = max((row.end or row.start for row in rows), default=1.0) or 1.0
    unit, name = (60.0, "minutes") if end > 180 else (1.0, "seconds")
    figure = Figure(figsize=(10, 2.8), layout="constrained")
    axes = figure.subplots()
    starts = [row.start for row in rows]
    for i, row in enumerate(rows):
        if row.prediction is None or row.end is None:
            continue
        stop = min(row.end, starts[i + 1]) if i + 1 < len(rows) else row.end  # the last window overlaps the one before it
        floor = 0.0
        for number, of in enumerate(classes):
            share = row.prediction.probabilities[of]
            axes.bar(row.start / unit, share, (stop - row.start) / unit, floor, align="edge", color=colours[number % 20])
            floor += share
    handles = [Rectangle((0, 0), 1, 1, color=colours[i % 20]) for i in range(len(classes))]
    axes.legend(handles[::-1], list(classes)[::-1], loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    axes.set_xlim(0, end / unit)
    axes.set_ylim(0, 1)
    axes.set_yticks(np.linspace(0, 1, 5), ["0", "25", "50", "75", "100 %"])
    axes.set_xlabel(name)
    axes.set_title(_printable(title), fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    return pictures.png(figure, f"picture of {_printable(title)}", "the rows have all names", dpi=130)


def _printable(name: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in name.encode(errors="replace").decode())
