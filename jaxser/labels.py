"""Labels as people and programs read them: a table, CSV or JSON lines, row by row, in a file that no interruption spoils."""

import csv
import io
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from jaxser import audio
from jaxser.command import differences, take_any_name
from jaxser.errors import CallError, WorkError
from jaxser.files import json_of, locked, named, write_json
from jaxser.recogniser import Prediction

Format = Literal["table", "csv", "jsonl"]


@dataclass(frozen=True)
class Row:
    """What was heard from `start` to `end` (seconds; None where nobody knows) of a recording, or why it has no label."""

    path: str
    start: float
    end: float | None
    prediction: Prediction | None
    reason: str = ""


def columns(classes: Sequence[str]) -> list[str]:
    """The header of a CSV of labels."""
    return ["path", "start", "end", "label", *(f"p_{name}" for name in classes), "agreement", "reason"]


def _cells(row: Row, classes: Sequence[str]) -> list[str]:
    end = "" if row.end is None else f"{row.end:.3f}"
    where = [row.path, f"{row.start:.3f}", end]
    if row.prediction is None:
        return [*where, "", *("" for _ in classes), "", " ".join(row.reason.split())]
    found = row.prediction
    return [*where, found.label, *(f"{found.probabilities[name]:.8f}" for name in classes), f"{found.agreement:.4f}", ""]


def _row(cells: Mapping[str, str], classes: Sequence[str]) -> Row:
    prediction = None
    if cells["label"]:
        probabilities = {name: float(cells[f"p_{name}"]) for name in classes}
        prediction = Prediction(cells["label"], probabilities, float(cells["agreement"]))
    end = float(cells["end"]) if cells["end"] else None
    return Row(cells["path"], float(cells["start"]), end, prediction, cells["reason"])


def as_csv(row: Row, classes: Sequence[str]) -> str:
    """One line, or several where a path has them."""
    return _line(_cells(row, classes))


def _line(cells: Sequence[str]) -> str:
    # A carriage return alone ends a line when it is read again, and would stand unquoted.
    file, quoting = io.StringIO(), csv.QUOTE_ALL if any("\r" in cell for cell in cells) else csv.QUOTE_MINIMAL
    csv.writer(file, lineterminator="\n", quoting=quoting).writerow(cells)
    return file.getvalue()


def as_json(row: Row, classes: Sequence[str]) -> str:
    """One line."""
    end = None if row.end is None else round(row.end, 3)
    known: dict[str, Any] = {"path": row.path, "start": round(row.start, 3), "end": end}
    if row.prediction is None:
        known["reason"] = row.reason
    else:
        known["label"] = row.prediction.label
        known |= {f"p_{name}": round(row.prediction.probabilities[name], 8) for name in classes}
        known["agreement"] = round(row.prediction.agreement, 4)
    return json.dumps(known, ensure_ascii=False) + "\n"


def as_text(row: Row, classes: Sequence[str]) -> str:
    """One line of a table; widths are fixed, since rows are printed before the longest is known."""
    path = " ".join(row.path.split())
    part = f"{row.start:7.1f} {'' if row.end is None else format(row.end, '.1f'):>7}"
    if row.prediction is None:
        return f"{part}  {'-':<12}{'':>{8 * len(classes)}}        {path}: {row.reason}\n"
    found = row.prediction
    shares = "".join(f"{100 * found.probabilities[name]:{_width(name)}.1f}" for name in classes)
    return f"{part}  {found.label:<12}{shares}  {100 * found.agreement:5.0f}   {path}\n"


def _width(name: str) -> int:
    return max(8, len(name) + 2)


def header(form: Format, classes: Sequence[str]) -> str:
    """What stands above the rows."""
    if form == "table":
        names = "".join(f"{name:>{_width(name)}}" for name in classes)
        return f"{'start':>7} {'end':>7}  {'label':<12}{names}  agree   (per cent)\n"
    return _line(columns(classes)) if form == "csv" else ""


SHOWN = {"table": as_text, "csv": as_csv, "jsonl": as_json}


Write = Callable[[Row], None]


Span = tuple[str, float, float | None]
"""Path, start and end in seconds; no end where nobody knows."""


RECORDINGS = "recordings"
"""In OUT.json, beside the settings: size and time of each recording by its path."""


@contextmanager
def opened(
    out: Path | None, form: Format, classes: Sequence[str], settings: Mapping[str, Any], spans: Sequence[Span]
) -> Iterator[tuple[list[Row], Write]]:
    """The rows that are there already, and a function that adds one, to be seen at once.

    They go to standard output, or to a file that goes on where an interruption left it, or already where a row has no label
    and might have one now: its recording has changed, or was only out of reach. Beside OUT lies OUT.json with what its labels
    were made with. `spans`: what all rows are to be of. Raises CallError for a file that was made otherwise, of other
    recordings, or that is none of ours, WorkError for one that another process writes.
    """
    if out is None:
        take_any_name(sys.stdout)
        sys.stdout.write(header(form, classes))

        def show(row: Row) -> None:
            sys.stdout.write(SHOWN[form](row, classes))
            sys.stdout.flush()

        yield [], show
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    with named(out), out.open("a+b") as file:
        if not locked(file):
            raise WorkError(f"{out} is being written by another process: wait for it, or give another --out")
        file.seek(0)
        content = file.read()
        rows, before = _rows_there(out, content, form, classes, settings) if content else ([], {})
        whole = _whole(rows, form, classes)
        if not (content.startswith(whole) or whole.startswith(content)):
            raise CallError(f"{out} is damaged: delete it and begin anew")
        now = _states(spans)
        rows = rows[: _standing(out, rows, spans, before, now)]
        whole = _whole(rows, form, classes)
        file.truncate(min(len(whole), len(content)))  # also without a row that was cut in two
        # Only then: rows that are gone must not be taken for ones of the recordings as they are now.
        write_json(out.with_name(out.name + ".json"), {**settings, RECORDINGS: before | now})
        file.write(whole[len(content) :])

        def write(row: Row) -> None:
            file.write(_encoded(SHOWN[form](row, classes)))
            file.flush()

        yield rows, write


def _whole(rows: Sequence[Row], form: Format, classes: Sequence[str]) -> bytes:
    return _encoded(header(form, classes) + "".join(SHOWN[form](row, classes) for row in rows))


def _states(spans: Sequence[Span]) -> dict[str, str]:
    # Of the recordings that are there.
    found = {}
    for path in dict.fromkeys(path for path, _, _ in spans):
        with suppress(OSError, ValueError):  # ValueError: a NUL, which is in no file's name
            state = os.stat(path)
            found[path] = f"{state.st_size} bytes, {state.st_mtime_ns} ns"
    return found


def _standing(out: Path, rows: Sequence[Row], spans: Sequence[Span], before: Mapping[str, Any], now: Mapping[str, str]) -> int:
    # How many rows stand: all before the first one without a label that might have one now.
    there, here = ([path for path, _ in groupby(paths)] for paths in ([row.path for row in rows], [span[0] for span in spans]))
    for one, other in zip(there, here, strict=False):
        if one != other:
            raise CallError(f"{out} is of other recordings, {one} where there is {other} now: give another --out")
    if len(there) > len(here):
        raise CallError(f"{out} is of more recordings than there are now: give another --out")
    for number, (row, (path, start, _)) in enumerate(zip(rows, spans, strict=False)):
        changed = path in now and now[path] != before.get(path)
        if row.prediction is None and (changed or (path in now and audio.may_pass(row.reason))):
            return number
        if changed and path in before:
            raise CallError(
                f"{out} is of another {path} than there is now (size or time differ): give another --out, or delete it"
            )
        if row.path != path or abs(row.start - start) > 0.001:
            raise CallError(f"{out} is of other recordings, {row.path} where there is {path} now: give another --out")
    if len(rows) > len(spans):
        raise CallError(f"{out} is of more recordings than there are now: give another --out")
    return len(rows)


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", errors="surrogateescape")


def _rows_there(
    out: Path, content: bytes, form: Format, classes: Sequence[str], settings: Mapping[str, Any]
) -> tuple[list[Row], dict[str, Any]]:
    # The whole rows of a file that was begun before, and the states that their recordings had.
    try:
        known = json_of(out.with_name(out.name + ".json"))
    except OSError:
        known = None
    if known is None:
        raise CallError(f"{out} exists and nothing says how it was made: give another --out, or delete it")
    states = known.pop(RECORDINGS, {})
    if differing := differences(known, settings):
        raise CallError(f"{out} was made otherwise ({differing}): give another --out, or delete it")
    text = content.decode("utf-8", errors="surrogateescape")
    whole = text[: text.rfind("\n") + 1]
    try:
        rows = (
            _rows_of_csv(whole, classes) if form == "csv" else [_row_of_json(line, classes) for line in whole.split("\n")[:-1]]
        )
    except (KeyError, TypeError, ValueError, RecursionError):
        raise CallError(f"{out} is damaged: delete it and begin anew") from None
    return rows, states if isinstance(states, dict) else {}


def _rows_of_csv(text: str, classes: Sequence[str]) -> list[Row]:
    names, rows = columns(classes), []
    lines = list(csv.reader(io.StringIO(text, newline="")))
    if lines and lines[0] != names:
        raise ValueError("another header")
    for number, cells in enumerate(lines[1:], 1):
        if len(cells) == len(names):
            rows.append(_row(dict(zip(names, cells, strict=True)), classes))
        elif number + 1 < len(lines):  # the last one may have been cut inside of a path of several lines
            raise ValueError("a row of another length")
    return rows


def _row_of_json(line: str, classes: Sequence[str]) -> Row:
    known = json.loads(line)
    prediction = None
    if "label" in known:
        probabilities = {name: known[f"p_{name}"] for name in classes}
        prediction = Prediction(known["label"], probabilities, known["agreement"])
    return Row(known["path"], known["start"], known["end"], prediction, known.get("reason", ""))
