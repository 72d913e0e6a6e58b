"""A run folder as people read it: a table for the terminal, the confusion matrix as a picture, one self-contained page."""

import csv
import shlex
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxser import citations, page, pictures, wording
from jaxser.errors import CallError
from jaxser.files import read_csv, write_bytes
from jaxser.results import read_json, read_reports


def table(out: Path) -> str:
    """The result of a finished run folder as text: folds, then the score with its interval, then what fixed it."""
    summary, card = read_reports(out)
    rows = [[_shortened(cell) for cell in row] for row in _fold_table(out, summary, card)]
    lines = [wording.title(summary, card), "", *wording.text_table(rows, words=(1,), rules=(0, len(rows) - 2))]
    lines += ["", *wording.scores_in_words(summary), *filter(None, [wording.calibration_in_words(summary)])]
    lines += [*wording.marks_against(summary, card), f"folds: {card['fold_rule']}"]
    lines += [f"note: {note}" for note in [*card["notes"], *card["leaks"]]]
    if summary["left_out"]:
        lines.append(f"left out: {summary['left_out']} utterance(s) that were not used, named in protocol.json")
    if card["outside_classes"]:
        lines.append(f"not among the classes: {wording.pairs(card['outside_classes'])}")
    if (out / "model").exists():
        lines.append(f"model: {out / 'model'} (python -m jaxser.predict {shlex.quote(str(out))} RECORDING ...)")
    lines += [f"signature: {summary['signature']}", f"{out / 'report.html'} ({summary['seconds']:.0f} s)"]
    return "\n".join(lines)


def _fold_table(out: Path, summary: dict[str, Any], card: dict[str, Any]) -> list[list[str]]:
    # A header, a line a fold (averaged over seeds) and their mean, all as text.
    by_fold = _by_fold(out, summary, card)
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
        scores = map(wording.percent, by_fold[fold["fold"]])
        rows.append([str(fold["fold"]), name, f"{sum(sizes)}{a_class}", str(fold["test"]), *scores])
    means = np.mean([by_fold[fold["fold"]] for fold in card["folds"]], axis=0)
    return [*rows, ["mean", "", "", str(summary["utterances"]), *map(wording.percent, means)]]


def draw(out: Path, summary: dict[str, Any]) -> None:
    """Write confusion.png and report.html into a run folder that has its tables."""
    card = read_json(out / "protocol.json")
    classes = summary["classes"]
    counts = np.array([[int(row[name]) for name in classes] for row in read_csv(out / "confusion.csv")])
    seeds = f", {summary['seeds']} seeds together" if summary["seeds"] > 1 else ""
    title = f"{wording.corpus_name(card)}\nUA {wording.percent(summary['ua_mean'])} %{seeds}"
    picture = pictures.confusion(counts, classes, title + "\nRANDOM WEIGHTS" * summary["random_weights"])
    write_bytes(out / "confusion.png", picture)
    write_bytes(out / "report.html", _page(out, summary, card, picture, counts).encode(errors="backslashreplace"))


def _page(out: Path, summary: dict[str, Any], card: dict[str, Any], picture: bytes, counts: np.ndarray) -> str:
    score, _, beside = wording.scores_in_words(summary)[0].partition(", ")
    header, *lines = _fold_table(out, summary, card)
    alignment = out / "alignment.png"
    blocks = [
        page.paragraph(score, "score"),
        page.paragraph(beside),
        page.paragraph(wording.scores_in_words(summary)[1], "soft"),
        *(page.paragraph(mark, "mark") for mark in wording.marks_against(summary, card)),
        page.section("Protocol", page.facts(wording.protocol_in_words(summary, card))),
        page.section(
            "Folds",
            page.table(header, lines, words=(1,), total=-1),
            page.paragraph(f"Per cent; recalls by class; each line the mean over {wording.seeds_in_words(summary)}.", "soft"),
        ),
        page.section("Classes", page.table(("class", "recall %", "95 % interval"), _class_table(summary))),
        page.section(
            "Confusion",
            page.image(picture, "Confusion matrix: labels in rows, recognised classes in columns"),
            page.table(("labelled as", *summary["classes"]), _count_table(summary, counts)),
            page.paragraph("Utterances; labels in rows, recognised classes in columns, all seeds together.", "soft"),
        ),
        page.section("Calibration", *_calibration(summary)),
        page.section("What the words listened to", *_alignment(alignment.read_bytes())) if alignment.exists() else "",
        page.section("Training loss", _loss_curves(out)),
        page.section("To repeat it", page.copyable(card["command"])),
        page.section(
            "To cite it",
            page.paragraph("A row of a LaTeX table (head, features, UA, WA in per cent) and BibTeX entries:", "soft"),
            page.copyable(citations.latex_row(summary, card)),
            page.copyable(citations.bibtex([summary["signature"]])),
        ),
    ]
    return page.document(wording.title(summary, card), blocks)


def _class_table(summary: dict[str, Any]) -> list[list[str]]:
    return [[name, wording.percent(recall["mean"]), wording.interval(recall)] for name, recall in summary["recalls"].items()]


def _count_table(summary: dict[str, Any], counts: np.ndarray) -> list[list[str]]:
    return [[name, *map(str, row)] for name, row in zip(summary["classes"], counts, strict=True)]


def _calibration(summary: Mapping[str, Any]) -> list[str]:
    what = "Reliability: how often a label is right, against the probability it is given, before and after calibration"
    note = (
        "Expected calibration error in 15 bins, all seeds together, its interval over speakers; errors of opposite sign within "
        "a bin cancel. It is above nought even where probabilities are true over all speakers, and near nought its interval is "
        "biased upwards: what to hold it against stands last, from flipping the sign of each speaker's part at random. A dot "
        "is a bin, as large as its share of all predictions; on the dotted line probabilities mean what they say. The "
        "temperature of a fold is fitted on what the other folds' heads said of their own held-out speakers, which shares a "
        "little, for those heads were trained on this fold's. predictions.csv has the probabilities as trained."
    )
    words = wording.calibration_in_words(summary)
    picture = page.image(pictures.reliability(summary["calibration"]), what)
    return [picture, page.paragraph(words[0].upper() + words[1:]), page.paragraph(note, "soft")]


def _alignment(png: bytes) -> list[str]:
    what = "For each utterance its waveform and, word by word, how much of the attention each moment got"
    note = (
        "Each word spreads its attention over the whole utterance; red moments get more than the even share of it, blue ones "
        "less. A word's largest weight is at most 7.4 times its smallest. All numbers are in alignment.csv."
    )
    return [page.image(png, what, whole=True), page.paragraph(note, "soft")]


def _loss_curves(out: Path) -> str:
    curves = defaultdict(list)
    for row in read_csv(out / "losses.csv"):
        curves[row["seed"], row["fold"], row["train_size"]].append((int(row["updates"]), float(row["loss"])))
    longest = max(points[-1][0] for points in curves.values())
    highest = max(loss for points in curves.values() for _, loss in points) or 1.0
    lines = "".join(
        '<polyline class="curve" points="'
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


def _by_fold(out: Path, summary: Mapping[str, Any], card: Mapping[str, Any]) -> dict[int, np.ndarray]:
    # UA, WA and recalls of each fold, averaged over seeds.
    scores, names = defaultdict(list), ["ua", "wa", *(f"recall_{name}" for name in summary["classes"])]
    try:
        for row in read_csv(out / "scores.csv"):
            scores[int(row["fold"])].append([float(row[name]) for name in names])
    except (ValueError, KeyError, TypeError, csv.Error):
        scores = {}
    if [len(scores.get(fold["fold"], [])) for fold in card["folds"]] != [summary["seeds"]] * len(card["folds"]):
        raise CallError(f"{out / 'scores.csv'} is damaged: not {summary['seeds']} lines a fold; delete {out}, and run again")
    return {fold: np.mean(values, axis=0) for fold, values in scores.items()}


def _shortened(name: str) -> str:
    return name if len(name) <= 24 else name[:23] + "…"
