"""The paper's tables and figure on a small corpus: cells are cv's own, nothing is trained twice, what is missing is said."""

import csv
import json
import re
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tyro
from conftest import demand_well_formed, write_table

from jaxser import cells, cv, experiments, paper, tables
from jaxser.command import command_line, run_command, settings_of
from jaxser.errors import CallError
from jaxser.files import read_csv, write_json
from jaxser.results import read_finished

BYTES = ("config.json", "scores.csv", "predictions.csv", "confusion.csv", "losses.csv", "confusion.png")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a corpus and with what is already trained on it."""
    found = tmp_path_factory.mktemp("paper")
    write_table(found)
    return found


def config(home: Path, **changes) -> paper.Config:
    given = {"corpus": "csv", "root": home / "corpus.csv", "cache": home / "cache", "runs": home / "runs"}
    return paper.Config(**(given | {"updates": 6, "seeds": 2, "jobs": 1} | changes))


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many runs each program trained, as they are started."""
    found, train = [], experiments.ensemble.train_runs

    def counted(*given, **more):
        found.append(len(given[4]))
        return train(*given, **more)

    monkeypatch.setattr(experiments.ensemble, "train_runs", counted)
    return found


def test_table_1(home: Path, programs: list[int], capsys: pytest.CaptureFixture[str]):
    paper.main(config(home, table=1))
    printed = capsys.readouterr().out
    assert programs == [2 * 3] * 12  # one program for each head and kind of features
    rows = [re.split(r"  +", line)[:4] for line in printed.splitlines()]
    for row in (
        ["mean pooling", "49.7", "54.9", "+5.2"],
        ["mean + max pooling", "49.9", "57.4", "+7.5"],
        ["attention pooling", "49.7", "55.3", "+5.6"],
        ["MLP + mean", "51.6", "58.5", "+6.9"],
    ):  # as the paper printed them
        assert row in rows
    assert "32 examples (16 a class)" in printed
    assert "32 examples in place of 500: this corpus allows 32 in balance" in printed
    assert "untrained: random-nano:0, a control" in printed
    assert "untrained: RANDOM WEIGHTS: features of a network that was never trained" in printed
    assert printed.count("signature of ") == 12

    (out,) = (home / "runs").glob("table-1-*")
    with pytest.raises(CallError, match=r"is a table or figure of jaxser\.paper; its runs are named in .*cells\.csv$"):
        read_finished(out)
    assert (out / "table.txt").read_text() == printed
    page = (out / "report.html").read_text()
    demand_well_formed(page)
    assert "RANDOM WEIGHTS: features of a network that was never trained" in page
    rows = read_csv(out / "cells.csv")
    assert [row["weights"] for row in rows].count("RANDOM") == 4
    for row in rows:
        summary = json.loads((Path(row["folder"]) / "summary.json").read_text())
        assert float(row["ua_mean"]) == pytest.approx(summary["ua_mean"], abs=1e-6)
        assert row["signature"] == summary["signature"]

    # Finished cells are not trained again; one that is lost is, and gives what it gave.
    before = (out / "cells.csv").read_bytes()
    (Path(rows[3]["folder"]) / "summary.json").unlink()
    programs.clear()
    paper.main(config(home, table=1))
    assert programs == [2 * 3]
    assert (out / "cells.csv").read_bytes() == before
    assert capsys.readouterr().out == printed


def test_a_cell_that_diverges_leaves_the_others_their_training(
    home: Path, tmp_path: Path, programs: list[int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    heads = {head: tables.published.TABLE_1[head] for head in ("mean", "mlp")}
    monkeypatch.setattr(tables.published, "TABLE_1", heads)
    call = config(home, table=1, control="none", runs=tmp_path / "runs")
    train = experiments.ensemble.train_runs
    of_cell = type(experiments.HEADS["mean"].module(2, 0.0))

    def spoiling(model, tx, inputs, *rest, **more):
        found = train(model, tx, inputs, *rest, **more)
        if type(model) is of_cell and inputs[0].x.shape[-1] == 34:
            return replace(found, losses=[loss * np.nan for loss in found.losses])
        return found

    monkeypatch.setattr(experiments.ensemble, "train_runs", spoiling)
    monkeypatch.setattr(sys, "argv", ["paper", "--table", "1"])
    for trained in ([6] * 4, [6]):  # the second time only what failed
        programs.clear()
        with pytest.raises(SystemExit) as end:
            run_command("jaxser.paper", paper.Config, lambda _: paper.main(call))
        assert end.value.code == 1
        assert programs == trained
        size = {"train_size": 32, "head": "mean", "features": "lld"}
        lost = cells.cell_config(paper.resolve(call), **size).out
        said = capsys.readouterr().err.splitlines()[-1]
        assert said.startswith(f"jaxser.paper: no run of {lost} has a finite loss from update 1 on")
        folders = {path.parent for path in (tmp_path / "runs").glob("*/config.json")}
        assert {path for path in folders if not (path / "summary.json").exists()} == {lost}
        assert len(folders) == 4


def test_figure_2_is_one_program_a_kind_of_features_and_its_cells_are_cvs_own(
    home: Path, tmp_path: Path, programs: list[int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(tables.curves, "A_CLASS", (4, 8))
    call = config(home, figure=2, head="meanmax", runs=tmp_path / "runs")
    paper.main(call)
    printed = capsys.readouterr().out
    assert programs == [4 * 2 * 3] * 3  # sizes 8, 16, 32 and all rows
    assert "all rows (32)" in printed  # this corpus is balanced
    assert "a doubling adds" in printed
    (out,) = (tmp_path / "runs").glob("figure-2-*")
    assert (out / "figure.png").read_bytes().startswith(b"\x89PNG")
    demand_well_formed((out / "report.html").read_text())

    # Not the first of its program, so that each cell must have got its own part of what was trained.
    cell = cells.cell_config(paper.resolve(call), head="meanmax", features="lld", train_size=16)
    alone = replace(cell, out=tmp_path / "alone")
    cv.main(alone)
    for name in BYTES:
        assert (cell.out / name).read_bytes() == (alone.out / name).read_bytes(), name
    one, two = (json.loads((c.out / "summary.json").read_text()) | {"seconds": 0} for c in (cell, alone))
    assert one == two
    # The command that a cell's card gives is one that cv takes, and it names the same folder.
    card = json.loads((cell.out / "protocol.json").read_text())
    found = tyro.cli(cv.Config, args=shlex.split(card["command"])[3:])
    assert cv.config_hash(cv.resolve(found)) == cell.out.name


def with_text(home: Path, tmp_path: Path) -> Path:
    with (home / "corpus.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    rows[0].append("text")
    for number, row in enumerate(rows[1:]):
        row[0] = str(home / row[0])
        row.append(f"word{number % 5} said")
    with (tmp_path / "text.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return tmp_path / "text.csv"


def test_table_2_says_what_is_missing(home: Path, capsys: pytest.CaptureFixture[str]):
    paper.main(config(home, table=2, glove=home / "glove.txt"))
    printed = capsys.readouterr().out
    rows = [re.split(r"  +", line)[:3] for line in printed.splitlines()]
    for row in (
        ["BiLSTM + attention pooling", "descriptors", "58.8"],
        ["CNN + BiLSTM", "spectrogram", "59.4"],
        ["TDNN-LSTM + attention", "waveform", "60.7"],
        ["MLP + mean", "wav2vec", "64.3"],
        ["BiLSTM, alignment", "descriptors + GloVe", "70.9"],
        ["BiLSTM, multi-head self-attention", "features of a speech recogniser", "72.6"],
        ["BiLSTM, alignment", "wav2vec + BERT", "73.9"],
    ):  # as the paper printed them
        assert row in rows
    assert printed.count("not trained: the corpus has no transcripts") == 2
    (out,) = (home / "runs").glob("table-2-*")
    assert len(read_csv(out / "cells.csv")) == 2
    assert len(json.loads((out / "summary.json").read_text())["missing"]) == 2


@pytest.mark.usefixtures("no_hub")
def test_table_2_with_words(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    vectors = np.random.default_rng(0).normal(size=(6, 8))
    words = [*(f"word{i}" for i in range(5)), "said"]
    (tmp_path / "glove.txt").write_text("".join(f"{w} {' '.join(map(str, v))}\n" for w, v in zip(words, vectors, strict=True)))
    call = config(home, table=2, root=with_text(home, tmp_path), glove=tmp_path / "glove.txt", text_model="no/such-model")
    paper.main(replace(call, runs=tmp_path / "runs"))
    printed = capsys.readouterr().out
    assert "not trained: " in next(line for line in printed.splitlines() if "wav2vec + BERT" in line)
    assert "no/such-model" in printed
    (out,) = (tmp_path / "runs").glob("table-2-*")
    assert len(read_csv(out / "cells.csv")) == 3  # with the descriptors and GloVe
    assert "descriptors + GloVe: REPEATED TEXT" in printed

    # What one cell knows of a leak is said with the table, and above the page's first number.
    leak = "LEAK: identical audio in folds 0, 1: audio/s0-low-0, audio/s1-low-0"
    card = Path(read_csv(out / "cells.csv")[0]["folder"]) / "protocol.json"
    found = json.loads(card.read_text())
    write_json(card, found | {"leaks": [leak, leak.replace("-0", "-1"), *found["leaks"]]})
    paper.main(replace(call, runs=tmp_path / "runs"))
    said = f"{leak} (and 1 more)"
    assert said in capsys.readouterr().out
    assert said in (out / "table.txt").read_text()
    assert said in (out / "report.html").read_text().partition("<table")[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "say one of --table 1, --table 2 and --figure 2"),
        ({"table": 1, "figure": 2}, "say one of"),
        ({"table": 1, "features": "lld"}, "--features lld: table-1 has features of its own"),
        ({"table": 1, "text": "bert"}, "--text bert: table-1 has features of its own"),
        ({"table": 2, "train_size": 40}, "--train-size 40 is for --table 1, not for table-2"),
        ({"table": 1, "head": "mean"}, "--head mean is for --figure 2, not for table-1"),
        ({"figure": 2, "glove": Path("x")}, "--glove x is for --table 2"),
        ({"table": 2, "control": "random:0"}, "--control random:0 is for --table 1 and --figure 2"),
        ({"table": 1, "control": "nano"}, "--control nano: untrained weights"),
        ({"table": 1, "weights": "random-nano:0", "control": "random-nano:0"}, "are the --weights themselves"),
        ({"table": 1, "train_size": 1}, "at least one example of each of 2 classes"),
        ({"table": 1, "seeds": 0}, "--seeds 0: at least 1"),
        ({"table": 1, "weights": "nowhere"}, "nowhere: no such folder"),
        ({"table": 1, "root": None}, "needs --root"),
        ({"table": 1, "folds": 9}, "only 6 speakers"),
    ],
)
def test_wrong_calls(home: Path, tmp_path: Path, changes: dict, message: str):
    with pytest.raises(CallError, match=message):
        paper.main(config(home, runs=tmp_path / "runs", **changes))
    assert not list(tmp_path.rglob("summary.json"))


def test_a_corpus_without_speakers(home: Path, tmp_path: Path):
    lines = [",".join(line.split(",")[:2]) for line in (home / "corpus.csv").read_text().splitlines()]
    (home / "nameless.csv").write_text("\n".join(lines) + "\n")
    with pytest.raises(CallError, match="names neither speakers nor groups, and these tables"):
        paper.main(config(home, table=1, root=home / "nameless.csv", runs=tmp_path / "runs"))


def test_a_size_that_was_asked_for_is_said(home: Path, capsys: pytest.CaptureFixture[str]):
    paper.main(config(home, table=1, train_size=8, control="none"))
    assert "8 examples in place of 500: asked for" in capsys.readouterr().out


def test_a_folder_of_another_table_is_refused(home: Path, tmp_path: Path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    with pytest.raises(CallError, match="is no run folder"):
        paper.main(config(home, table=1, out=tmp_path / "mine"))


@pytest.mark.parametrize("made", [{"table": 1}, {"table": 2, "glove": Path("g.txt")}, {"figure": 2, "head": "mean"}])
def test_the_command_on_the_page_makes_it_again(home: Path, made: dict):
    given = paper.resolve(config(home, **made))
    line = command_line("jaxser.paper", given, paper.NOT_IN_HASH)
    again = paper.resolve(tyro.cli(paper.Config, args=shlex.split(line)[3:]))
    assert settings_of(again, paper.NOT_IN_HASH) == settings_of(given, paper.NOT_IN_HASH)


def test_untrained_weights_beside_others(home: Path):
    assert paper.resolve(config(home, table=1)).control == "random-nano:0"
    assert paper.resolve(config(home, table=1, control="none")).control == "none"
    assert paper.resolve(config(home, table=1, weights="random:0")).control == "none"
    assert list(tables.columns_of(paper.resolve(config(home, table=1, control="none")))) == ["descriptors", "wav2vec"]
