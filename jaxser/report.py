"""A run folder as people read it: a table for the terminal, the confusion matrix as a picture, one self-contained page."""

import base64
import html
import json
from collections import defaultdict
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from jaxser.results import read_csv

matplotlib.use("Agg")
from matplotlib import pyplot as plt

RUN_COLUMNS = ("fold", "seed", "train_size", "weights")
"""What names a run in scores.csv; all its other columns are scores."""


def table(out: Path) -> str:
    """The result of a finished run folder as text: folds, then the score with its interval, then what fixed it."""
    summary, card = _read(out, "summary.json"), _read(out, "protocol.json")
    rows = [[_shortened(cell) for cell in row] for row in _fold_table(out, summary, card)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [_title(summary, card), ""]
    for i, row in enumerate(rows):
        cells = [c.ljust(w) if j == 1 else c.rjust(w) for j, (c, w) in enumerate(zip(row, widths, strict=True))]
        lines.append("  ".join(cells).rstrip())
        if i in (0, len(rows) - 2):
            lines.append("  ".join("-" * w for w in widths))
    lines += ["", *scores_in_words(summary), *marks_against(summary), f"folds: {card['fold_rule']}"]
    lines += [f"note: {note}" for note in [*card["notes"], *card["leaks"]]]
    if summary["left_out"]:
        lines.append(f"left out: {summary['left_out']} utterance(s) that could not be used, named in protocol.json")
    if card["outside_classes"]:
        lines.append(f"not among the classes: {_pairs(card['outside_classes'])}")
    lines += [f"signature: {summary['signature']}", f"{out / 'report.html'} ({summary['seconds']:.0f} s)"]
    return "\n".join(lines)


def _fold_table(out: Path, summary: dict[str, Any], card: dict[str, Any]) -> list[list[str]]:
    # A header, a line a fold (averaged over seeds) and their mean, all as text.
    by_fold = _by_fold(out)
    names = [fold["held_out"] for fold in card["folds"]]
    if summary["validate"]:
        names = names[1:] + names[:1]
    rows = [
        [
            "fold",
            "scored on" if summary["validate"] else "held out",
            "trained on",
            "scored",
            "UA %",
            "WA %",
            *summary["classes"],
        ]
    ]
    for fold, name in zip(card["folds"], names, strict=True):
        sizes = fold["train"].values()
        a_class = f" ({min(sizes)} a class)" if len(set(sizes)) == 1 else ""
        scores = map(_percent, by_fold[fold["fold"]])
        rows.append([str(fold["fold"]), name, f"{sum(sizes)}{a_class}", str(fold["test"]), *scores])
    means = np.mean([by_fold[fold["fold"]] for fold in card["folds"]], axis=0)
    return [*rows, ["mean", "", "", str(summary["utterances"]), *map(_percent, means)]]


def scores_in_words(summary: dict[str, Any]) -> list[str]:
    """UA and WA, each with its interval and what the interval is over, its spread over seeds, and the chance level."""
    lines = []
    for name in ("ua", "wa"):
        text = f"{name.upper()} {_percent(summary[f'{name}_mean'])} %"
        if summary[f"{name}_low"] is None:
            text += f", no interval: only one {summary['interval_unit']}"
        else:
            unit = (
                f"{summary['speakers']} speakers" if summary["interval_unit"] == "speaker" else f"{summary['interval_unit']}s"
            )
            text += f", 95 % interval {_percent(summary[f'{name}_low'])} to {_percent(summary[f'{name}_high'])} over {unit}"
        if name == "ua":
            text += f"; chance {_percent(summary['chance'])} %"
        if summary[f"{name}_std"] is not None:
            text += f"; standard deviation over {summary['seeds']} seeds {_percent(summary[f'{name}_std'])}"
        lines.append(text)
    return lines


def marks_against(summary: dict[str, Any]) -> list[str]:
    """What a reader must know before believing the scores."""
    marks = []
    if summary["validate"]:
        marks.append("VALIDATION: speakers inside the training folds; for choosing settings, not a result")
    if summary["random_weights"]:
        marks.append("RANDOM WEIGHTS: features of a network that was never trained; a baseline, not a result of wav2vec")
    if summary["interval_unit"] == "utterance":
        marks.append("NOT SPEAKER-INDEPENDENT: the corpus names no speakers; an interval over utterances is too narrow")
    return marks


def draw(out: Path, summary: dict[str, Any]) -> None:
    """Write confusion.png and report.html into a run folder that has its tables."""
    card = _read(out, "protocol.json")
    picture = _confusion_picture(out, summary, card)
    for name, content in (("confusion.png", picture), ("report.html", _page(out, summary, card, picture).encode())):
        part = out / f".{name}"
        part.write_bytes(content)
        part.replace(out / name)


def _confusion_picture(out: Path, summary: dict[str, Any], card: dict[str, Any]) -> bytes:
    classes = summary["classes"]
    counts = np.array([[int(row[name]) for name in classes] for row in read_csv(out / "confusion.csv")])
    shares = counts / counts.sum(1, keepdims=True)
    side = 2.2 + 0.75 * len(classes)
    figure, axes = plt.subplots(figsize=(side, side), layout="constrained")
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for i, j in np.ndindex(*counts.shape):
        colour = "white" if shares[i, j] > 0.55 else "black"
        axes.text(j, i - 0.08, f"{100 * shares[i, j]:.0f} %", ha="center", va="center", color=colour, fontsize=11)
        axes.text(j, i + 0.24, f"{counts[i, j]}", ha="center", va="center", color=colour, fontsize=7)
    axes.set_xticks(range(len(classes)), classes, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(classes)), classes)
    axes.set_xlabel("recognised as")
    axes.set_ylabel("labelled as")
    seeds = f", {summary['seeds']} seeds together" if summary["seeds"] > 1 else ""
    title = f"{_corpus_name(card)}\nUA {100 * summary['ua_mean']:.1f} %{seeds}"
    axes.set_title(title + "\nRANDOM WEIGHTS" * summary["random_weights"], fontsize=10)
    axes.spines[:].set_visible(False)
    memory = BytesIO()
    figure.savefig(memory, format="png", dpi=160, metadata={"Software": None})
    plt.close(figure)
    return memory.getvalue()


_STYLE = """
:root { color-scheme: light dark; --ink: #1a1d21; --soft: #5b6570; --line: #d9dee3; --paper: #fff; --bar: #2f6fb3 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e7eaee; --soft: #9aa5b1; --line: #343b44; --paper: #15181c; --bar: #6aa7e8 } }
body { font: 16px/1.55 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 54rem; margin: 2rem auto;
  padding: 0 1rem }
h1 { font-size: 1.35rem; margin-bottom: 0 } h2 { font-size: 1.05rem; margin-top: 2.2rem }
.score { font-size: 2.6rem; font-weight: 650; margin: .6rem 0 0 } .soft { color: var(--soft) }
.mark { border-left: 4px solid #c0392b; padding-left: .8rem; font-weight: 600 }
.wide { overflow-x: auto } table { border-collapse: collapse; font-variant-numeric: tabular-nums }
table { font-size: .9rem } tr:last-child { font-weight: 600 }
th, td { text-align: right; padding: .3rem .45rem; border-bottom: 1px solid var(--line) }
th:nth-child(2), td:nth-child(2) { text-align: left; overflow-wrap: anywhere; min-width: 4.5rem }
dt { color: var(--soft) } dd { margin: 0 0 .6rem; overflow-wrap: anywhere }
img { width: 27rem; max-width: 100%; height: auto; background: #fff; border-radius: 6px }
img.whole { width: 100%; min-width: 42rem }
code, pre { font-size: .85rem; overflow-wrap: anywhere; white-space: pre-wrap }
svg { max-width: 100%; height: auto } polyline { fill: none; stroke: var(--bar); stroke-width: 1.5;
  opacity: .65 } svg text { fill: var(--soft); font-size: 12px } svg line { stroke: var(--line) }
@media print { body { max-width: none; margin: 0 } }
"""


def _page(out: Path, summary: dict[str, Any], card: dict[str, Any], picture: bytes) -> str:
    score, _, beside = scores_in_words(summary)[0].partition(", ")
    first, *lines = _fold_table(out, summary, card)
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in first)
    rows = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in line) + "</tr>\n" for line in lines)
    facts = {
        "Corpus": _corpus_name(card),
        "Utterances": f"{card['utterances']}: " + _pairs(card["classes"]),
        "By group": "; ".join(f"{group}: {_pairs(counts)}" for group, counts in card["counts_by_group"].items()),
        "Speakers": str(card["speakers"] or "not named by the corpus"),
        "Folds": card["fold_rule"],
        "Leaks looked for": "; ".join(card["leaks"]) or "speakers on both sides: none; " + _none_found(card),
        "Other labels, not used": _pairs(card["outside_classes"]),
        "Left out": "; ".join(f"{name}: {reason}" for name, reason in card["left_out"]),
        "Notes": "; ".join(card["notes"]),
        "Features": _pairs(card["settings"].get("audio", {})),
        "Text": _pairs(card["settings"].get("text", {})),
        "Versions": _pairs(card["versions"]),
        "Device": f"{card['device']}, {summary['runs_per_device']} runs on each",
        "Signature": summary["signature"],
    }
    listed = "".join(f"<dt>{name}</dt><dd>{html.escape(text)}</dd>" for name, text in facts.items() if text)
    marks = "".join(f'<p class="mark">{html.escape(mark)}</p>' for mark in marks_against(summary))
    image = base64.b64encode(picture).decode()
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(_title(summary, card))}</title><style>{_STYLE}</style></head><body>
<h1>{html.escape(_title(summary, card))}</h1>
<p class="score">{html.escape(score)}</p>
<p>{html.escape(beside)}<br><span class="soft">{html.escape(scores_in_words(summary)[1])}</span></p>{marks}
<h2>Folds</h2><div class="wide"><table><tr>{head}</tr>{rows}</table></div>
<p class="soft">Per cent; recalls by class; each line the mean over {summary["seeds"]} seed(s).</p>
<h2>Confusion</h2>
<img alt="Confusion matrix: labels in rows, recognised classes in columns" src="data:image/png;base64,{image}">
{_alignment(out)}<h2>Training loss</h2>{_loss_curves(out)}
<h2>Protocol</h2><dl>{listed}</dl>
<h2>To repeat it</h2><pre>{html.escape(card["command"])}</pre>
</body></html>
"""


def _alignment(out: Path) -> str:
    if not (out / "alignment.png").exists():
        return ""
    image = base64.b64encode((out / "alignment.png").read_bytes()).decode()
    return f"""<h2>What the words listened to</h2>
<div class="wide"><img class="whole" src="data:image/png;base64,{image}"
alt="For each utterance its waveform and, word by word, how much of the attention each moment got"></div>
<p class="soft">Each word spreads its attention over the whole utterance; red moments get more than the even share of it,
blue ones less. A word's largest weight is at most 7.4 times its smallest. All numbers are in alignment.csv.</p>
"""


def _loss_curves(out: Path) -> str:
    curves = defaultdict(list)
    for row in read_csv(out / "losses.csv"):
        curves[row["seed"], row["fold"], row["train_size"]].append((int(row["updates"]), float(row["loss"])))
    longest = max(points[-1][0] for points in curves.values())
    highest = max(loss for points in curves.values() for _, loss in points) or 1.0
    lines = "".join(
        '<polyline points="'
        + " ".join(f"{40 + 580 * x / longest:.1f},{190 - 170 * y / highest:.1f}" for x, y in points)
        + '"/>'
        for points in curves.values()
    )
    return (
        '<svg viewBox="0 0 640 215" width="640" role="img" aria-label="Training loss of every run over updates">'
        f'<line x1="40" y1="190" x2="620" y2="190"/><line x1="40" y1="20" x2="40" y2="190"/>{lines}'
        f'<text x="34" y="24" text-anchor="end">{highest:.2g}</text><text x="34" y="194" text-anchor="end">0</text>'
        f'<text x="620" y="208" text-anchor="end">{longest:,} updates</text></svg>'
    )


def _by_fold(out: Path) -> dict[int, np.ndarray]:
    # UA, WA and recalls of each fold, averaged over seeds.
    scores = defaultdict(list)
    for row in read_csv(out / "scores.csv"):
        scores[int(row["fold"])].append([float(v) for k, v in row.items() if k not in RUN_COLUMNS])
    return {fold: np.mean(values, axis=0) for fold, values in scores.items()}


def _title(summary: dict[str, Any], card: dict[str, Any]) -> str:
    people = f"{summary['speakers']} speakers" if summary["speakers"] else "speakers unknown"
    runs = f"{summary['folds']} folds, {summary['seeds']} seed{'s' * (summary['seeds'] > 1)}"
    head = summary["signature"].partition("|head:")[2].partition("|")[0]
    what = f"{_corpus_name(card)} · {card['features']} · {head}"
    return f"{what} · {summary['utterances']} utterances, {people}, {runs}"


def _none_found(card: dict[str, Any]) -> str:
    return "; ".join(f"{'identical audio' if kind == 'audio' else 'repeated text'}: none" for kind in card["settings"])


def _corpus_name(card: dict[str, Any]) -> str:
    return "SYNTHETIC corpus (not real speech)" if card["synthetic"] else card["corpus"]


def _pairs(counts: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in counts.items())


def _shortened(name: str) -> str:
    return name if len(name) <= 24 else name[:23] + "…"


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _read(out: Path, name: str) -> dict[str, Any]:
    return json.loads((out / name).read_text(encoding="utf-8"))
