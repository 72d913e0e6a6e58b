"""A run folder as people read it: a table for the terminal, the confusion matrix as a picture, one self-contained page."""

import csv
import shlex
from collections import defaultdict
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from jaxser import citations, metrics, page, protocol
from jaxser.errors import CallError
from jaxser.files import read_csv, write_bytes
from jaxser.results import read_json, read_reports

matplotlib.use("Agg")
from matplotlib import pyplot as plt


def table(out: Path) -> str:
    """The result of a finished run folder as text: folds, then the score with its interval, then what fixed it."""
    summary, card = read_reports(out)
    rows = [[_shortened(cell) for cell in row] for row in _fold_table(out, summary, card)]
    lines = [title(summary, card), "", *text_table(rows, words=(1,), rules=(0, len(rows) - 2))]
    lines += ["", *scores_in_words(summary), *filter(None, [calibration_in_words(summary)]), *marks_against(summary, card)]
    lines += [f"folds: {card['fold_rule']}"]
    lines += [f"note: {note}" for note in [*card["notes"], *card["leaks"]]]
    if summary["left_out"]:
        lines.append(f"left out: {summary['left_out']} utterance(s) that could not be used, named in protocol.json")
    if card["outside_classes"]:
        lines.append(f"not among the classes: {_pairs(card['outside_classes'])}")
    if (out / "model").exists():
        lines.append(f"model: {out / 'model'} (python -m jaxser.predict {shlex.quote(str(out))} RECORDING ...)")
    lines += [f"signature: {summary['signature']}", f"{out / 'report.html'} ({summary['seconds']:.0f} s)"]
    return "\n".join(lines)


def text_table(rows: Sequence[Sequence[str]], words: Sequence[int], rules: Sequence[int] = (0,)) -> list[str]:
    """A table as lines of text. Columns in `words` stand to the left, numbers to the right; a line is drawn after `rules`."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for i, row in enumerate(rows):
        cells = [c.ljust(w) if j in words else c.rjust(w) for j, (c, w) in enumerate(zip(row, widths, strict=True))]
        lines.append("  ".join(cells).rstrip())
        if i in rules:
            lines.append("  ".join("-" * w for w in widths))
    return lines


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
        scores = map(percent, by_fold[fold["fold"]])
        rows.append([str(fold["fold"]), name, f"{sum(sizes)}{a_class}", str(fold["test"]), *scores])
    means = np.mean([by_fold[fold["fold"]] for fold in card["folds"]], axis=0)
    return [*rows, ["mean", "", "", str(summary["utterances"]), *map(percent, means)]]


def scores_in_words(summary: dict[str, Any]) -> list[str]:
    """UA and WA, each with its interval and what the interval is over, its spread over seeds, and the chance level."""
    lines = []
    for name in ("ua", "wa"):
        text = f"{name.upper()} {percent(summary[f'{name}_mean'])} %"
        if None in (summary[f"{name}_low"], summary[f"{name}_high"]):
            text += f", no interval: only one {summary['interval_unit']}"
        else:
            low, high = percent(summary[f"{name}_low"]), percent(summary[f"{name}_high"])
            text += f", 95 % interval {low} to {high} over {units_in_words(summary)}"
        if name == "ua":
            text += f"; chance {percent(summary['chance'])} %"
        if summary[f"{name}_std"] is not None:
            text += f"; standard deviation over {summary['seeds']} seeds {percent(summary[f'{name}_std'])}"
        lines.append(text)
    return lines


def calibration_in_words(summary: Mapping[str, Any]) -> str:
    """How far the probabilities can be believed, before and after each fold's temperature; empty where nobody looked."""
    if not (found := summary.get("calibration")):
        return ""

    def shown(of: Mapping[str, Any]) -> str:
        return percent(of["error"]) + (f" ({interval(of)})" if of["low"] is not None else "")

    temperatures = sorted(found["temperature_by_fold"])
    words = (
        f"calibration: probabilities are off by {shown(found['uncalibrated'])} points on average, "
        f"by {shown(found['calibrated'])} with temperatures fitted on the other folds "
        f"({temperatures[0]:.2f} to {temperatures[-1]:.2f})"
    )
    by_chance = found.get("by_chance")  # which run folders of older versions do not have
    return words if by_chance is None else f"{words}; true ones would be off by {percent(by_chance)} by chance"


def marks_against(summary: Mapping[str, Any], card: Mapping[str, Any]) -> list[str]:
    """What a reader must know before believing the scores."""
    marks = []
    if found := [line for line in card["leaks"] if line.startswith("LEAK")]:
        marks.append(found[0] + f" (and {len(found) - 1} more)" * (len(found) > 1))
    if summary["validate"]:
        marks.append("VALIDATION: scored on speakers that other folds are tested on; for choosing settings, not a result")
    if summary["random_weights"]:
        marks.append("RANDOM WEIGHTS: features of a network that was never trained; a baseline, not a result of wav2vec")
    if summary["interval_unit"] == "utterance":
        marks.append("NOT SPEAKER-INDEPENDENT: the corpus names no speakers; an interval over utterances is too narrow")
    return marks


def draw(out: Path, summary: dict[str, Any]) -> None:
    """Write confusion.png and report.html into a run folder that has its tables."""
    card = read_json(out / "protocol.json")
    picture = _confusion_picture(out, summary, card)
    write_bytes(out / "confusion.png", picture)
    write_bytes(out / "report.html", _page(out, summary, card, picture).encode(errors="backslashreplace"))


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
    title = f"{corpus_name(card)}\nUA {100 * summary['ua_mean']:.1f} %{seeds}"
    axes.set_title(title + "\nRANDOM WEIGHTS" * summary["random_weights"], fontsize=10)
    axes.spines[:].set_visible(False)
    memory = BytesIO()
    figure.savefig(memory, format="png", dpi=160, metadata={"Software": None})
    plt.close(figure)
    return memory.getvalue()


def _page(out: Path, summary: dict[str, Any], card: dict[str, Any], picture: bytes) -> str:
    score, _, beside = scores_in_words(summary)[0].partition(", ")
    header, *lines = _fold_table(out, summary, card)
    alignment = out / "alignment.png"
    blocks = [
        page.paragraph(score, "score"),
        page.paragraph(beside),
        page.paragraph(scores_in_words(summary)[1], "soft"),
        *(page.paragraph(mark, "mark") for mark in marks_against(summary, card)),
        page.section("Protocol", page.facts(protocol_in_words(summary, card))),
        page.section(
            "Folds",
            page.table(header, lines, words=(1,), total=-1),
            page.paragraph(f"Per cent; recalls by class; each line the mean over {seeds_in_words(summary)}.", "soft"),
        ),
        page.section("Classes", page.table(("class", "recall %", "95 % interval"), _class_table(summary))),
        page.section("Confusion", page.image(picture, "Confusion matrix: labels in rows, recognised classes in columns")),
        page.section("Calibration", *_calibration(summary)),
        page.section("What the words listened to", *_alignment(alignment.read_bytes())) if alignment.exists() else "",
        page.section("Training loss", _loss_curves(out)),
        page.section("To repeat it", page.copyable(card["command"])),
        page.section(
            "To cite it",
            page.paragraph("A row of a LaTeX table (head, features, UA, WA in per cent) and BibTeX entries:", "soft"),
            page.copyable(latex_row(summary, card)),
            page.copyable(citations.bibtex([summary["signature"]])),
        ),
    ]
    return page.document(title(summary, card), blocks)


def protocol_in_words(summary: dict[str, Any], card: dict[str, Any]) -> dict[str, str | list[str]]:
    """The protocol card as lines for people, by name; an empty one is not worth showing."""
    training = f"{card['training']}; {seeds_in_words(summary)}"
    return {
        "Corpus": corpus_name(card),
        "Utterances": f"{card['utterances']}: " + _pairs(card["classes"]),
        "By group": [f"{group}: {_pairs(counts)}" for group, counts in card["counts_by_group"].items()],
        "Speakers": str(card["speakers"] or "not named by the corpus"),
        "Left out": [f"{name}: {reason}" for name, reason in card["left_out"]],
        "Other labels, not used": _pairs(card["outside_classes"]),
        "Notes": card["notes"],
        "Folds": card["fold_rule"],
        "Trained on": card["subset_rule"],
        "Leaks looked for": [
            line for check in card["leak_checks"] for line in check["found"] or [f"{check['looked_for']}: none"]
        ],
        "Training": training,
        "Features": _pairs(card["settings"].get("audio", {})),
        "Text": _pairs(card["settings"].get("text", {})),
        "Left open by the paper, chosen here": [f"{name}: {choice}" for name, choice in card["choices"].items()],
        "Versions": _pairs(card["versions"]),
        "Device": f"{card['device']}, {protocol.runs_in_words(summary['runs_per_device'])}; {card['processor']}",
        "Signature": summary["signature"],
    }


def seeds_in_words(summary: dict[str, Any]) -> str:
    """How many seeds, in words."""
    return "one seed" if summary["seeds"] == 1 else f"{summary['seeds']} seeds"


def units_in_words(summary: Mapping[str, Any]) -> str:
    """What an interval is over."""
    return f"{summary['speakers']} speakers" if summary["interval_unit"] == "speaker" else f"{summary['interval_unit']}s"


def _class_table(summary: dict[str, Any]) -> list[list[str]]:
    return [[name, percent(recall["mean"]), interval(recall)] for name, recall in summary["recalls"].items()]


def latex_row(summary: dict[str, Any], card: dict[str, Any]) -> str:
    """Head, features, UA and WA with their intervals, as a row of a LaTeX table."""
    scores = []
    for name in ("ua", "wa"):
        low, high = summary[f"{name}_low"], summary[f"{name}_high"]
        beside = "" if low is None else f" ({percent(low)}--{percent(high)})"
        scores.append(percent(summary[f"{name}_mean"]) + beside)
    return " & ".join([citations.escaped(summary["head"]), citations.escaped(card["features"]), *scores]) + r" \\"


def scored(summary: Mapping[str, Any], score: str) -> str:
    """A score in per cent with its interval, in the least space."""
    found = {bound: summary[f"{score}_{bound}"] for bound in ("low", "high")}
    return percent(summary[f"{score}_mean"]) + (f" ({interval(found)})" if found["low"] is not None else "")


def _calibration(summary: Mapping[str, Any]) -> list[str]:
    found = summary["calibration"]
    figure, axes = plt.subplots(figsize=(4.2, 3.6), layout="constrained")
    axes.plot([0, 1], [0, 1], color="grey", linewidth=0.8, linestyle=":")
    for name, words, colour in (("uncalibrated", "as trained", "#b04a3a"), ("calibrated", "with temperatures", "#2a6fb0")):
        there = [
            (sure, right, share)
            for sure, right, share in zip(*(found[name][of] for of in ("confidence", "accuracy", "share")), strict=True)
            if share
        ]
        sure, right, share = (np.array(column) for column in zip(*there, strict=True))
        axes.plot(sure, right, color=colour, linewidth=1.2, label=words)
        axes.scatter(sure, right, s=8 + 220 * share, color=colour, alpha=0.7, linewidths=0)
    axes.set_xlabel("probability of the label it gives")
    axes.set_ylabel("how often that is right")
    axes.set_xlim(0, 1.02)
    axes.set_ylim(0, 1.02)
    axes.legend(frameon=False, loc="upper left", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    memory = BytesIO()
    figure.savefig(memory, format="png", dpi=160, metadata={"Software": None})
    plt.close(figure)
    what = "Reliability: how often a label is right, against the probability it is given, before and after calibration"
    note = (
        "Expected calibration error in 15 bins, all seeds together, its interval over speakers. In bins of so few predictions "
        "it is above nought even where every probability is true, by what stands last. A dot is a bin, as large as its share "
        "of all predictions; on the dotted line probabilities mean what they say. The temperature of a fold is fitted on what "
        "the other folds' heads said of their own held-out speakers, which shares a little, for those heads were trained on "
        "this fold's. predictions.csv has the probabilities as trained."
    )
    words = calibration_in_words(summary)
    return [page.image(memory.getvalue(), what), page.paragraph(words[0].upper() + words[1:]), page.paragraph(note, "soft")]


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


def title(summary: Mapping[str, Any], card: Mapping[str, Any]) -> str:
    """Corpus, features, head and counts in one line."""
    people = f"{summary['speakers']} speakers" if summary["speakers"] else "speakers unknown"
    runs = f"{summary['folds']} folds, {summary['seeds']} seed{'s' * (summary['seeds'] > 1)}"
    what = f"{corpus_name(card)} · {card['features']} · {summary['head']}"
    return f"{what} · {summary['utterances']} utterances, {people}, {runs}"


def corpus_name(card: Mapping[str, Any]) -> str:
    """The corpus, with what must be said wherever a number of it stands."""
    return "SYNTHETIC corpus (not real speech)" if card["synthetic"] else card["corpus"]


def _pairs(counts: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in counts.items())


def _shortened(name: str) -> str:
    return name if len(name) <= 24 else name[:23] + "…"


def percent(value: float) -> str:
    """A fraction in per cent, without the sign."""
    return f"{100 * value:.1f}"


def points(value: float) -> str:
    """A difference of fractions in points, with its sign; with more digits where it would look like none."""
    rounded = round(100 * value, 1) + 0.0  # no minus before zero
    return f"{rounded:+.1f}" if rounded or abs(value) < metrics.ROUNDING else f"{100 * value:+.1g}"


def interval(found: Mapping[str, float | None]) -> str:
    """`low` and `high` in per cent, in words."""
    if None in (found["low"], found["high"]):
        return "not known"
    return f"{percent(found['low'])} to {percent(found['high'])}"
