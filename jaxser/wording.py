"""Numbers and protocols in words, the same wherever they stand: terminal, page, model card, comparison, table of the paper."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxser import metrics, protocol


def scores_in_words(summary: dict[str, Any]) -> list[str]:
    """UA and WA, each with its interval and what the interval is over, its spread over seeds, and the chance level."""
    lines = []
    for name in ("ua", "wa"):
        text = f"{name.upper()} {percent(summary[f'{name}_mean'])} %"
        if None in (summary[f"{name}_low"], summary[f"{name}_high"]):
            text += f", no interval: too few {summary['interval_unit']}s"
        else:
            low, high = percent(summary[f"{name}_low"]), percent(summary[f"{name}_high"])
            text += f", 95 % interval {low} to {high} over {units_in_words(summary)}"
            if name == "ua" and summary["ua_low_over_groups"] is not None:
                low, high = percent(summary["ua_low_over_groups"]), percent(summary["ua_high_over_groups"])
                text += f" ({low} to {high} over their {summary['groups_as_units']} groups)"
        if name == "ua":
            text += f"; chance {percent(summary['chance'])} %"
        if summary[f"{name}_std"] is not None:
            text += f"; standard deviation over {summary['seeds']} seeds {percent(summary[f'{name}_std'])}"
        lines.append(text)
    return lines


def calibration_in_words(summary: Mapping[str, Any]) -> str:
    """How far the probabilities can be believed, before and after each fold's temperature; empty where nobody looked.

    By bins, in which errors of opposite sign cancel: it says that confidence and accuracy differ there, not by how much
    probabilities are wrong.
    """
    if not (found := summary.get("calibration")):
        return ""

    def shown(of: Mapping[str, Any]) -> str:
        return percent(of["error"]) + (f" ({interval(of)})" if of["low"] is not None else "")

    temperatures = sorted(found["temperature_by_fold"])
    words = (
        f"calibration: binned confidence and accuracy differ by {shown(found['uncalibrated'])} points, "
        f"by {shown(found['calibrated'])} with temperatures fitted on the other folds "
        f"({temperatures[0]:.2f} to {temperatures[-1]:.2f})"
    )
    mean, high = found["by_chance"], found["by_chance_high"]
    if None in (mean, high):  # too few speakers
        return words
    return f"{words}; true probabilities would show {percent(mean)} by chance, at most {percent(high)} in 95 of 100 cases"


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


def protocol_in_words(summary: dict[str, Any], card: dict[str, Any]) -> dict[str, str | list[str]]:
    """The protocol card as lines for people, by name; an empty one is not worth showing."""
    training = f"{card['training']}; {seeds_in_words(summary)}"
    return {
        "Corpus": corpus_name(card),
        "Utterances": f"{card['utterances']}: " + pairs(card["classes"]),
        "By group": [f"{group}: {pairs(counts)}" for group, counts in card["counts_by_group"].items()],
        "Speakers": str(card["speakers"] or "not named by the corpus"),
        "Left out": [f"{name}: {reason}" for name, reason in card["left_out"]],
        "Other labels, not used": pairs(card["outside_classes"]),
        "Notes": card["notes"],
        "Folds": card["fold_rule"],
        "Trained on": card["subset_rule"],
        "Leaks looked for": [
            line for check in card["leak_checks"] for line in check["found"] or [f"{check['looked_for']}: none"]
        ],
        "Training": training,
        "Features": pairs(card["settings"].get("audio", {})),
        "Text": pairs(card["settings"].get("text", {})),
        "Left open by the paper, chosen here": [f"{name}: {choice}" for name, choice in card["choices"].items()],
        "Versions": pairs(card["versions"]),
        "Device": f"{card['device']}, {protocol.runs_in_words(summary['runs_per_device'])}; {card['processor']}",
        "Signature": summary["signature"],
    }


def seeds_in_words(summary: dict[str, Any]) -> str:
    """How many seeds, in words."""
    return "one seed" if summary["seeds"] == 1 else f"{summary['seeds']} seeds"


def units_in_words(summary: Mapping[str, Any]) -> str:
    """What an interval is over."""
    return f"{summary['speakers']} speakers" if summary["interval_unit"] == "speaker" else f"{summary['interval_unit']}s"


def scored(summary: Mapping[str, Any], score: str) -> str:
    """A score in per cent with its interval, in the least space."""
    found = {bound: summary[f"{score}_{bound}"] for bound in ("low", "high")}
    return percent(summary[f"{score}_mean"]) + (f" ({interval(found)})" if found["low"] is not None else "")


def title(summary: Mapping[str, Any], card: Mapping[str, Any]) -> str:
    """Corpus, features, head and counts in one line."""
    people = f"{summary['speakers']} speakers" if summary["speakers"] else "speakers unknown"
    runs = f"{summary['folds']} folds, {summary['seeds']} seed{'s' * (summary['seeds'] > 1)}"
    what = f"{corpus_name(card)} · {card['features']} · {summary['head']}"
    return f"{what} · {summary['utterances']} utterances, {people}, {runs}"


def corpus_name(card: Mapping[str, Any]) -> str:
    """The corpus, with what must be said wherever a number of it stands."""
    return "SYNTHETIC corpus (not real speech)" if card["synthetic"] else card["corpus"]


def pairs(counts: Mapping[str, Any]) -> str:
    """Names with their values, in one line."""
    return ", ".join(f"{name} {value}" for name, value in counts.items())


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
