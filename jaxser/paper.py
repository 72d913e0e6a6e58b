"""python -m jaxser.paper --table 1, --table 2 or --figure 2: the paper's own, on any corpus, beside the paper's numbers."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jaxser import citations, cv, devices, extract, hosts, metrics, page, published, results, tables, wording
from jaxser.cells import cell_config
from jaxser.command import command_line, demand_at_least, hash_of, run_command, settings_of
from jaxser.errors import CallError, WorkError
from jaxser.files import write_bytes, write_csv, write_json
from jaxser.results import Finished
from jaxser.wording import percent

CONTROLS = {"nano": "random-nano:0"}
"""The untrained network that stands beside pretrained weights where --control says nothing."""


@dataclass(frozen=True)
class Config(extract.Config):
    """Train the cells of a table or figure of the paper on a corpus, and print it in the paper's own shape.

    Every cell is a run of jaxser.cv in a run folder of its own: what is finished is not trained again, and after an
    interruption the same command goes on. Needs one of --table and --figure.
    """

    table: Literal[1, 2] | None = None
    """1: four heads on descriptors and on wav2vec, 500 examples. 2: all data, with recurrent heads and words."""
    figure: Literal[2] | None = None
    """2: UA against the number of examples."""
    control: str | None = None
    """Untrained weights that stand beside --weights, such as random:0; or none. Default: random-nano:0 beside nano."""
    glove: Path | None = None
    """For Table 2: a file of GloVe's vectors. The row that needs it is left out without."""
    train_size: int = published.TABLE_1_SIZE
    """For Table 1: examples to train on, fewer where the corpus does not have as many in balance."""
    head: Literal["mean", "meanmax", "attention", "mlp"] = "mlp"
    """For Figure 2."""
    folds: int | None = None
    """As in jaxser.cv."""
    seeds: int = 3
    """How many repetitions of every cell."""
    updates: int | None = None
    """Length of training in every cell, in place of each head's own: for a quick look."""
    parallel: int = 0
    """Runs at once on each device; 0: one on a CPU, as many as memory holds on an accelerator."""
    memory: float = 0.0
    """GiB that frames may take on each device; 0: what there is."""
    runs: Path = Path("runs")
    """Where the cells' run folders lie."""
    out: Path | None = None
    """The folder of the table or figure itself. Default: in --runs."""


OWN = {
    "control": ("table-1", "figure-2"), "glove": ("table-2",), "text_model": ("table-2",), "tags": ("table-2",),
    "train_size": ("table-1",), "head": ("figure-2",),
}  # fmt: skip
"""Flags that some of the tables and figures have. Given with another they would change nothing, silently."""

NOT_IN_HASH = (*cv.NOT_IN_HASH, "runs")


def main(config: Config) -> None:
    """The whole command. The table goes to stdout, everything else to stderr."""
    config = resolve(config)
    devices.prepare(config.cache)
    with hosts.joined(config):
        make(config)


def make(config: Config) -> None:
    """What each host does with a resolved configuration."""
    mine = settings_of(config, NOT_IN_HASH)
    out = config.out or config.runs / f"{name_of(config)}-{hash_of(mine)}"
    results.finished_summary(out, mine)  # a folder of something else is refused before any work
    made = tables.MAKERS[name_of(config)](config)
    runs = {name: cell.run for name, cell in made.cells.items() if cell.run}
    missing = {name: cell.missing for name, cell in made.cells.items() if not cell.run}
    if not runs:
        raise WorkError(f"nothing of {name_of(config)} can be trained here: " + "; ".join(missing.values()))
    if not hosts.first():
        return
    results.begin(out, mine)
    command = command_line("jaxser.paper", config, NOT_IN_HASH)
    signatures = [f"signature of {name}: {run.summary['signature']}" for name, run in runs.items()]
    text = "\n".join([*made.text, *_marks(runs), "", *signatures, str(out / "report.html")]) + "\n"
    write_csv(out / "cells.csv", CELL_COLUMNS, [_row(name, run) for name, run in runs.items()])
    write_bytes(out / "table.txt", text.encode(errors="backslashreplace"))
    if made.picture:
        write_bytes(out / "figure.png", made.picture)
    write_bytes(out / "report.html", _page(made, runs, command).encode(errors="backslashreplace"))
    cells = {name: {"folder": str(run.folder), **_scores(run)} for name, run in runs.items()}
    write_json(out / "summary.json", {"cells": cells, "missing": missing, "command": command})  # last, as in every folder
    print(text, end="")


def name_of(config: Config) -> str:
    """What is made: table-1, table-2 or figure-2."""
    return f"table-{config.table}" if config.table else f"figure-{config.figure}"


def resolve(config: Config) -> Config:
    """The same configuration with its defaults filled in, or a CallError for what contradicts itself."""
    if (config.table is None) == (config.figure is None):
        raise CallError("say one of --table 1, --table 2 and --figure 2")
    for name in ("features", "text"):
        if getattr(config, name) != getattr(Config, name):
            raise CallError(f"--{name} {getattr(config, name)}: {name_of(config)} has features of its own; leave it out")
    for flag, homes in OWN.items():
        if (value := getattr(config, flag)) != getattr(Config, flag) and name_of(config) not in homes:
            where = " and ".join(f"--{home.replace('-', ' ')}" for home in homes)
            raise CallError(f"--{flag.replace('_', '-')} {value} is for {where}, not for {name_of(config)}")
    demand_at_least(config, {"train_size": 1, "seeds": 1, "updates": 1, "parallel": 0, "memory": 0})
    control = config.control
    if control is None and name_of(config) in OWN["control"]:
        control = CONTROLS.get(config.weights, "none")
    if control not in (None, "none") and not control.startswith("random"):
        raise CallError(f"--control {control}: untrained weights, such as random:0, or none")
    if control == config.weights:
        raise CallError(f"--control {control} are the --weights themselves: --control none leaves the control out")
    cell_config(config, features="lld", head="mean")  # what jaxser.cv would refuse
    return dataclasses.replace(config, control=control, classes=extract.classes_of(config))


SCORES = tuple(f"{score}_{what}" for score in metrics.SCORES for what in ("mean", "low", "high", "std"))
CELL_COLUMNS = ["cell", *SCORES, "weights", "folder", "signature"]


def _scores(run: Finished) -> dict[str, Any]:
    return {name: run.summary[name] for name in (*SCORES, "random_weights", "signature")}


def _row(name: str, run: Finished) -> list[Any]:
    # Fractions, empty where something is not known.
    numbers = ["" if (value := run.summary[score]) is None else f"{value:.6f}" for score in SCORES]
    weights = "RANDOM" if run.summary["random_weights"] else ""
    return [name, *numbers, weights, run.folder, run.summary["signature"]]


def _page(made: tables.Made, runs: Mapping[str, Finished], command: str) -> str:
    signatures = {name: run.summary["signature"] for name, run in runs.items()}
    header = ["cell", "UA %", "WA %", "deviation over seeds", "run folder"]
    rows = [
        [name, *(wording.scored(run.summary, score) for score in metrics.SCORES), _deviation(run), str(run.folder)]
        for name, run in runs.items()
    ]
    latex = "\n".join(citations.latex_row(run.summary, run.card) for run in runs.values())
    return page.document(
        made.title,
        [
            *(page.paragraph(mark, "mark") for mark in _marks(runs)),
            page.section("Protocol, alike in all cells", page.facts(_common_protocol(list(runs.values())))),
            *made.blocks,
            page.section("Cells", page.table(header, rows, words=(0, 4))),
            page.section("Signatures", page.facts(signatures)),
            page.section("To repeat it", page.copyable(command)),
            page.section("To cite it", page.copyable(latex), page.copyable(citations.bibtex(list(signatures.values())))),
        ],
    )


def _deviation(run: Finished) -> str:
    return "" if run.summary["ua_std"] is None else percent(run.summary["ua_std"])


def _common_protocol(runs: Sequence[Finished]) -> dict[str, str | list[str]]:
    cards = [wording.protocol_in_words(run.summary, run.card) for run in runs]
    return {name: value for name, value in cards[0].items() if all(card.get(name) == value for card in cards[1:])}


def _marks(runs: Mapping[str, Finished]) -> list[str]:
    # What a reader must know before believing the numbers, once each, with the cells of which it is true.
    found = {}
    for name, run in runs.items():
        for mark in wording.marks_against(run.summary, run.card):
            found.setdefault(mark, []).append(name)
    return [mark if len(names) == len(runs) else f"{_columns(names)}: {mark}" for mark, names in found.items()]


def _columns(names: Sequence[str]) -> str:
    return ", ".join(dict.fromkeys(name.partition(" · ")[0] for name in names))


if __name__ == "__main__":
    run_command("jaxser.paper", Config, main)
