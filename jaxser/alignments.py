"""What each word of an utterance listened to, for people: the alignment as a table and as a picture.

The maps are diffuse by construction (see jaxser/aligned.py), so the picture shows weights relative to the even share, on a
logarithmic scale that is the same for all utterances of one picture.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32, Float64, Int
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from jaxser import audio, pictures
from jaxser.audio import SAMPLE_RATE
from jaxser.calibration import softmax
from jaxser.corpora import Corpus
from jaxser.ensemble import Trained
from jaxser.errors import CallError
from jaxser.extract import Features
from jaxser.files import write_bytes, write_csv
from jaxser.standards import standardised
from jaxser.store import Frames
from jaxser.train import Run

SPREADS = (1.1, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0, 8.0)
"""Where the colours may end, in times the even share. A weight is below e^2 = 7.4 times it and above its inverse; the first
keeps a map that is all but even from looking as if it said something."""

WIDTH, WAVEFORM, WORD, LEAST_MAP, AROUND = 10.0, 0.8, 0.21, 1.4, 0.85
"""Inches: of the picture, of a waveform's height, of a word's, of the lowest map, and of title and axis together."""

POINTS = 1_600
"""A waveform is drawn as the range of its samples in so many stretches, about one a pixel."""


@dataclass(frozen=True)
class Alignment:
    """One utterance with what its words listened to."""

    id: str
    label: str
    predicted: str
    share: float
    """Probability of the predicted class."""
    words: tuple[str, ...]
    """In reading order; word pieces of BERT that continue a word begin with ##."""
    weights: Float32[np.ndarray, "k t"]
    """A line a word; each sums to one over the frames."""
    starts: Float64[np.ndarray, " t"]
    """Seconds from the beginning of the cropped utterance where a frame begins to hear, ascending."""
    ends: Float64[np.ndarray, " t"]
    """Where it stops."""
    waveform: Float32[np.ndarray, " s"] | None
    """The cropped utterance at 16 kHz; None where the audio is gone."""


def chosen(ids: Sequence[str], corpus: Corpus) -> list[int]:
    """The rows of the utterances of these ids. Raises CallError for one that is not in the corpus."""
    rows = {u.id: row for row, u in enumerate(corpus.utterances)}
    if strange := [name for name in ids if name not in rows]:
        raise CallError(f"--show {strange[0]}: no utterance of that id in the corpus; ids look like {next(iter(rows))}")
    return [rows[name] for name in ids]


def of_runs(
    model: nn.Module,
    rows: Sequence[int] | None,
    corpus: Corpus,
    inputs: tuple[Frames, Frames],
    features: Sequence[Features],
    labels: Int[np.ndarray, " n"],
    runs: Sequence[Run],
    trained: Trained,
    part: Mapping[str, Any],
) -> list[Alignment]:
    """The alignments of some rows, or of the typical ones, each by the first seed's run that did not train on it.

    `inputs` and `features` are those of sound and of words, in this order; `part` is what of a longer utterance was read
    (`max_seconds` and `crop_to` of `audio.load`). A frame is taken to hear an equal share of the utterance, which is true to
    within a window.
    """
    first = [(number, run) for number, run in enumerate(runs) if run.seed == runs[0].seed]
    by_row = {row: number for number, run in first for row in run.test.tolist()}
    probabilities = np.zeros((len(labels), len(corpus.classes)))
    for number, run in first:
        probabilities[run.test] = softmax(trained.logits[number].astype(np.float64))
    if rows is None:
        rows = typical([u.id for u in corpus.utterances], labels, probabilities, corpus.classes)
    heard, said = (one.store.rows for one in features)
    found = []
    for row in rows:
        utterance, number = corpus.utterances[row], by_row[row]
        params, standards = (jax.tree.map(lambda leaf, i=number: leaf[i], tree) for tree in (trained.params, trained.standards))
        read = jax.tree.map(jnp.asarray, standardised(inputs, standards, np.array([row])))
        _, sown = model.apply({"params": params}, *read, train=False, mutable=["intermediates"])
        words, frames = (int(f.mask[row].sum()) for f in inputs[::-1])
        weights = np.asarray(sown["intermediates"]["attention"][0][0, :words, :frames], np.float32)
        sound = heard[features[0].contents[utterance.id]]
        edges = np.linspace(0, sound.seconds, frames + 1)
        predicted = int(probabilities[row].argmax())
        found.append(
            Alignment(
                id=utterance.id,
                label=utterance.label,
                predicted=corpus.classes[predicted],
                share=float(probabilities[row, predicted]),
                words=said[features[1].contents[utterance.id]].words,
                weights=weights,
                starts=edges[:-1],
                ends=edges[1:],
                waveform=_waveform(utterance.path, part),
            )
        )
    return found


def _waveform(path: Path, part: Mapping[str, Any]) -> np.ndarray | None:
    try:
        return audio.load(path, **part)
    except audio.AudioError:
        return None  # once features are stored, the audio is not needed


def typical(
    ids: Sequence[str], labels: Int[np.ndarray, " n"], probabilities: Float64[np.ndarray, "n c"], classes: Sequence[str]
) -> list[int]:
    """Rows of the utterances to show when nobody chose any: of each class the recognised one of median probability.

    `labels` are numbers of `classes`, whose order is that of the columns and of the answer. Of an even number the lower median
    counts, of equal probabilities the earlier id comes first; a class of which none was recognised gives none.
    """
    predicted = probabilities.argmax(-1)
    rows = []
    for number, (_, of_class) in enumerate(zip(classes, probabilities.T, strict=True)):
        recognised = np.flatnonzero((labels == number) & (predicted == number)).tolist()
        recognised.sort(key=lambda row: (of_class[row], ids[row]))
        if recognised:
            rows.append(recognised[(len(recognised) - 1) // 2])
    return rows


def write(out: Path, alignments: Sequence[Alignment]) -> None:
    """Write alignment.csv, a line a word and frame, and alignment.png into a folder, each whole or not at all.

    Words are numbered from 1 in reading order and stand in the table as the text model has them.
    """
    drawn = picture(alignments)
    lines = []
    for one in alignments:
        spans = [(f"{start:.3f}", f"{end:.3f}") for start, end in zip(one.starts, one.ends, strict=True)]
        for number, (word, weights) in enumerate(zip(one.words, one.weights.tolist(), strict=True), 1):
            lines += [[one.id, number, word, *span, f"{w:.8f}"] for span, w in zip(spans, weights, strict=True)]
    write_csv(out / "alignment.csv", ["id", "word_number", "word", "start", "end", "weight"], lines)
    write_bytes(out / "alignment.png", drawn)


def picture(alignments: Sequence[Alignment]) -> bytes:
    """The `figure` as a PNG."""
    return pictures.png(figure(alignments), "alignment.png", "alignment.csv has all words")


@pictures.drawing()
def figure(alignments: Sequence[Alignment]) -> Figure:
    """For each utterance its waveform and below it what each word listened to, both over the same seconds.

    Colours say how many times the even share a frame got of a word: 1 where it looks at all frames alike. Where neighbouring
    frames overlap, or leave a gap, the picture changes from one to the other in the middle.
    """
    if not alignments:
        empty = Figure(figsize=(WIDTH, AROUND))
        empty.text(0.5, 0.5, "no utterance to show", ha="center", va="center")
        return empty
    heights = [[WAVEFORM * (one.waveform is not None), max(LEAST_MAP, WORD * len(one.words))] for one in alignments]
    made = Figure(figsize=(WIDTH, float(np.sum(heights)) + AROUND * len(alignments)), layout="constrained")
    made.get_layout_engine().set(w_pad=0.08, h_pad=0.06, hspace=0)
    rows = [height for pair in heights for height in pair if height]
    grid = made.add_gridspec(len(rows), 2, height_ratios=rows, width_ratios=[60, 1])
    norm = _norm(alignments)
    row = 0
    for one in alignments:
        first, above = row, None
        if one.waveform is not None:
            above = made.add_subplot(grid[row, 0])
            _draw_waveform(above, one.waveform)
            row += 1
        below = made.add_subplot(grid[row, 0], sharex=above)
        mesh = _draw_map(below, one, norm)
        row += 1
        _title(above or below, one)
        bar = made.colorbar(mesh, cax=made.add_subplot(grid[first:row, 1]))
        ticks = norm.vmax ** np.array([-1, -0.5, 0, 0.5, 1])
        bar.set_ticks(ticks, labels=[f"{tick:.2g}" for tick in ticks], fontsize=8)
        bar.minorticks_off()
        bar.set_label("times the even share", fontsize=8)
    return made


def _norm(alignments: Sequence[Alignment]) -> LogNorm:
    # One for all, so that a colour means the same in each panel.
    highest = max(_relative(one).max(initial=1) for one in alignments)
    lowest = min(_relative(one).min(initial=1) for one in alignments)
    limit = next((spread for spread in SPREADS if highest <= spread and lowest * spread >= 1), SPREADS[-1])
    return LogNorm(1 / limit, limit)


def _relative(one: Alignment) -> Float64[np.ndarray, "k t"]:
    return one.weights.astype(np.float64) * one.weights.shape[1]


def _draw_waveform(axes: Axes, waveform: Float32[np.ndarray, " s"]) -> None:
    edges = np.unique(np.linspace(0, len(waveform), POINTS, endpoint=False, dtype=np.int64))
    low, high = np.minimum.reduceat(waveform, edges), np.maximum.reduceat(waveform, edges)
    axes.fill_between(edges / SAMPLE_RATE, low, high, step="post", color="0.25", linewidth=0.4)
    loudest = float(np.abs(waveform).max()) or 1.0
    axes.set_ylim(-1.05 * loudest, 1.05 * loudest)
    axes.set_yticks([])
    axes.tick_params(bottom=False, labelbottom=False)  # the map below has the seconds
    axes.spines[:].set_visible(False)


def _draw_map(axes: Axes, one: Alignment, norm: LogNorm) -> QuadMesh:
    between = (one.ends[:-1] + one.starts[1:]) / 2
    edges = np.concatenate([one.starts[:1], between, one.ends[-1:]])
    shown = np.clip(_relative(one), norm.vmin, norm.vmax)
    mesh = axes.pcolormesh(edges, np.arange(len(one.words) + 1), shown, cmap="RdBu_r", norm=norm)
    words = [_readable(word) for word in one.words]
    axes.set_yticks(np.arange(len(words)) + 0.5, words, fontsize=9)
    axes.set_ylim(max(1, len(one.words)), 0)
    sound = 0 if one.waveform is None else len(one.waveform) / SAMPLE_RATE
    axes.set_xlim(min(0, edges[0]), max(edges[-1], sound))
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=8)
    axes.set_xlabel("seconds", fontsize=8)
    return mesh


def _title(axes: Axes, one: Alignment) -> None:
    name = one.id if len(one.id) <= 60 else "…" + one.id[-59:]  # ids that are paths differ at their ends
    text = f"{name}: labelled {one.label}, recognised as {one.predicted} ({100 * one.share:.0f} %)"
    axes.set_title(text, loc="left", fontsize=10)


def _readable(word: str) -> str:
    text = "·" + word[2:] if word.startswith("##") and len(word) > 2 else word
    return text if len(text) <= 24 else text[:23] + "…"
