"""The command from its flags to its files and exit codes."""

import csv
import json
import re
import shutil
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import jax
import numpy as np
import pytest
import soundfile
from conftest import write_tone
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix, recall_score

from jaxser import cv, experiments, extractor, program, protocol
from jaxser.command import command_line
from jaxser.errors import CallError, WorkError
from jaxser.files import read_csv

FILES = {"config.json", "scores.csv", "predictions.csv", "confusion.csv", "losses.csv", "summary.json", "protocol.json",
         "confusion.png", "report.html"}  # fmt: skip


@pytest.fixture
def config(table: Path, tmp_path: Path) -> cv.Config:
    return cv.Config(
        corpus="csv",
        root=table,
        features="lld",
        head="mean",
        updates=150,
        learning_rate=1e-2,
        seeds=2,
        cache=tmp_path / "cache",
        out=tmp_path / "run",
    )


def command(*flags: str | Path, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "jaxser.cv", *map(str, flags)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_run_folder(config: cv.Config, capsys: pytest.CaptureFixture[str]):
    cv.main(config)
    out = config.out
    assert {path.name for path in out.iterdir()} == FILES
    summary = json.loads((out / "summary.json").read_text())
    assert summary["utterances"] == 48
    assert (summary["speakers"], summary["folds"], summary["seeds"], summary["left_out"]) == (6, 3, 2, 0)
    devices = min(6, jax.local_device_count())
    assert (summary["devices"], sum(summary["runs_per_device"])) == (devices, 6)
    assert len(summary["runs_per_device"]) == devices
    assert summary["classes"] == ["high", "low"]
    assert summary["ua_mean"] > 0.7  # the classes are two tones
    printed = capsys.readouterr().out
    for text in (
        "chance 50.0 %",
        "6 speakers",
        "each of 3 groups held out once",
        "95 % interval",
        summary["signature"],
    ):
        assert text in printed
    assert "<script" not in (out / "report.html").read_text()
    assert "http" not in (out / "report.html").read_text()


def test_files_agree_with_each_other_and_with_scikit_learn(config: cv.Config):
    cv.main(replace(config, updates=8, learning_rate=1e-3))
    scores, predictions = read_csv(config.out / "scores.csv"), read_csv(config.out / "predictions.csv")
    assert len(predictions) == 2 * 48
    assert len({(row["id"], row["seed"]) for row in predictions}) == 96
    uas = {}
    for score in scores:
        rows = [r for r in predictions if (r["fold"], r["seed"]) == (score["fold"], score["seed"])]
        labels, predicted = [r["label"] for r in rows], [r["predicted"] for r in rows]
        assert {r["group"] for r in rows} == {f"g{score['fold']}"}
        assert float(score["ua"]) == pytest.approx(balanced_accuracy_score(labels, predicted), abs=1e-6)
        assert float(score["wa"]) == pytest.approx(accuracy_score(labels, predicted), abs=1e-6)
        recalls = recall_score(labels, predicted, labels=["high", "low"], average=None)
        assert [float(score[f"recall_{name}"]) for name in ("high", "low")] == pytest.approx(recalls, abs=1e-6)
        uas.setdefault(score["seed"], []).append(float(score["ua"]))
        for row in rows:
            p = {name: float(row[f"p_{name}"]) for name in ("high", "low")}
            assert sum(p.values()) == pytest.approx(1, abs=1e-7)
            assert max(p, key=p.get) == row["predicted"]
    summary = json.loads((config.out / "summary.json").read_text())
    means = [np.mean(values) for values in uas.values()]
    assert summary["ua_mean"] == pytest.approx(np.mean(means), abs=1e-6)
    assert summary["ua_std"] == pytest.approx(np.std(means, ddof=1), abs=1e-6)
    expected = confusion_matrix(
        [r["label"] for r in predictions], [r["predicted"] for r in predictions], labels=["high", "low"]
    )
    found = [[int(row[name]) for name in ("high", "low")] for row in read_csv(config.out / "confusion.csv")]
    np.testing.assert_array_equal(found, expected)


def test_losses_are_means_of_250_updates(config: cv.Config, monkeypatch: pytest.MonkeyPatch):
    trained, train_runs = [], experiments.ensemble.train_runs

    def kept(*given, **more):
        trained.append((given[4], train_runs(*given, **more)))
        return trained[-1][1]

    monkeypatch.setattr(experiments.ensemble, "train_runs", kept)
    cv.main(replace(config, updates=600))
    ((runs, found),) = trained
    expected = [
        (run.fold, run.seed, until, pytest.approx(losses[first:until].mean(dtype=np.float64), abs=1e-6))
        for run, losses in zip(runs, found.losses, strict=True)
        for first, until in ((0, 250), (250, 500), (500, 600))
    ]
    rows = read_csv(config.out / "losses.csv")
    assert [(*(int(row[name]) for name in ("fold", "seed", "updates")), float(row["loss"])) for row in rows] == expected


def test_two_identical_commands_give_identical_files(config: cv.Config, tmp_path: Path):
    two = replace(config, out=tmp_path / "two", head="mlp")
    cv.main(replace(config, head="mlp"))
    shutil.rmtree(config.cache)
    cv.main(two)
    for name in FILES - {"summary.json", "report.html"}:
        assert (config.out / name).read_bytes() == (two.out / name).read_bytes(), name
    one, two = (json.loads((c.out / "summary.json").read_text()) for c in (config, two))
    assert one | {"seconds": 0} == two | {"seconds": 0}


def test_another_head_reads_no_audio(config: cv.Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    cv.main(config)
    monkeypatch.setattr(extractor, "write_part", lambda *work: pytest.fail("extracted again"))
    monkeypatch.setattr("jaxser.digests.file_digest", lambda path: pytest.fail(f"{path} read again"))
    shutil.rmtree(tmp_path / "audio")
    cv.main(replace(config, head="attention", out=tmp_path / "two"))


def test_train_size_is_seen(config: cv.Config, capsys: pytest.CaptureFixture[str]):
    cv.main(replace(config, train_size=8))
    assert capsys.readouterr().out.count("8 (4 a class)") == 3
    card = json.loads((config.out / "protocol.json").read_text())
    assert [fold["train"] for fold in card["folds"]] == [{"high": 4, "low": 4}] * 3
    assert {row["train_size"] for row in read_csv(config.out / "scores.csv")} == {"8"}


def test_validation_never_scores_the_test_fold(config: cv.Config, capsys: pytest.CaptureFixture[str]):
    cv.main(replace(config, validate=True))
    for row in read_csv(config.out / "predictions.csv"):
        assert row["group"] == f"g{(int(row['fold']) + 1) % 3}"
    assert "not a result" in capsys.readouterr().out


def test_finished_is_printed_and_unfinished_is_done_again(config: cv.Config, capsys: pytest.CaptureFixture[str], monkeypatch):
    cv.main(config)
    first = capsys.readouterr().out
    (config.out / "summary.json").rename(config.out / "kept")
    cv.main(config)
    assert json.loads((config.out / "summary.json").read_text())["signature"] in first
    (config.out / "kept").replace(config.out / "summary.json")
    monkeypatch.setattr(experiments.ensemble, "train_runs", lambda *work: pytest.fail("trained again"))
    cv.main(config)
    assert capsys.readouterr().out.endswith(first)


def test_a_finished_run_that_is_trained_again_and_killed_is_not_finished(config: cv.Config, monkeypatch: pytest.MonkeyPatch):
    def killed(*work):
        raise KeyboardInterrupt

    config = replace(config, updates=20)
    cv.main(config)
    with monkeypatch.context() as patch:
        patch.setattr(experiments.report, "draw", killed)  # the tables are written, the summary not yet
        with pytest.raises(KeyboardInterrupt):
            cv.main(replace(config, save=True))
    assert not (config.out / "summary.json").exists()
    cv.main(config)
    assert (config.out / "summary.json").exists()


@pytest.mark.parametrize(
    ("other", "named"), [(None, []), ("signatures", ["signatures"]), ("versions", ["jax"]), ("device", ["device"])]
)
def test_a_state_of_other_data_versions_or_devices_is_not_mixed_in(
    config: cv.Config,
    table: Path,
    other: str | None,
    named: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    def killed(*work):
        raise KeyboardInterrupt

    config = replace(config, updates=20, state_seconds=0.0)
    with monkeypatch.context() as patch:
        patch.setattr(program, "predicted", killed)  # all is trained, and saved
        with pytest.raises(KeyboardInterrupt):
            cv.main(config)
    if other == "signatures":
        write_tone(table.parent / "audio/s0-low-0.wav", 0.4, 150, seed=12345)
    if other == "versions":
        versions = protocol.versions() | {"jax": "0.0.1"}
        monkeypatch.setattr(protocol, "versions", lambda: versions)
    if other == "device":
        monkeypatch.setattr(experiments, "processor", lambda: "another one")
    capsys.readouterr()
    cv.main(config)
    said = capsys.readouterr().err
    assert ("going on after 120 of 120 updates" in said) == (other is None)
    assert re.findall(r"is not gone on from.*: it is of other work \((\w+): ", said) == named


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("summary.json", "{}", "holds the finished result of other data"),
        ("scores.csv", "fold,seed\n", r"scores\.csv is damaged"),
    ],
)
def test_a_damaged_result_is_not_printed(config: cv.Config, name: str, content: str, message: str):
    cv.main(config)
    (config.out / name).write_text(content)
    with pytest.raises(CallError, match=message):
        cv.main(config)


def test_a_folder_of_another_configuration_is_refused(config: cv.Config, tmp_path: Path):
    cv.main(config)
    with pytest.raises(CallError, match=r"another configuration \(head: there 'mean', here 'mlp'\)"):
        cv.main(replace(config, head="mlp"))
    (tmp_path / "things").mkdir()
    (tmp_path / "things" / "mine.txt").write_text("mine")
    with pytest.raises(CallError, match="is no run folder"):
        cv.main(replace(config, out=tmp_path / "things"))


def test_a_result_of_changed_data_is_not_printed_as_todays(config: cv.Config, tmp_path: Path):
    cv.main(config)
    write_tone(tmp_path / "audio/s0-low-0.wav", 0.4, 150, seed=12345)
    with pytest.raises(CallError, match="other data or another version"):
        cv.main(config)


def test_one_bad_file_is_counted_and_named(config: cv.Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "audio/s0-low-0.wav").write_text("no audio")
    cv.main(config)
    assert json.loads((config.out / "summary.json").read_text())["left_out"] == 1
    printed = capsys.readouterr()
    assert "left out: audio/s0-low-0: not readable" in printed.err
    assert "left out: 1 utterance(s)" in printed.out
    with pytest.raises(WorkError, match=r"s0-low-0\.wav: not readable"):
        cv.main(replace(config, strict=True, out=tmp_path / "strict"))
    assert not (tmp_path / "strict" / "summary.json").exists()


def test_many_bad_files_do_not_fill_the_screen(config: cv.Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for speaker in range(6):
        for name in ("low-0", "low-1", "high-0", "high-1"):
            (tmp_path / f"audio/s{speaker}-{name}.wav").write_text("no audio")
    cv.main(replace(config, updates=2))
    printed = capsys.readouterr()
    lines = [line for line in printed.err.splitlines() if line.startswith(("left out", "..."))]
    assert len(lines) == 21
    assert lines[-2].startswith("left out: audio/s4-high-1: not readable")
    assert lines[-1] == "... and 4 more, in protocol.json"
    assert "left out: 24 utterance(s) that were not used, named in protocol.json" in printed.out
    assert len(json.loads((config.out / "protocol.json").read_text())["left_out"]) == 24


def test_planted_leaks_are_found(config: cv.Config, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    # The same samples in a file of other bytes.
    samples, rate = soundfile.read(tmp_path / "audio/s0-low-0.wav", dtype="int16")
    soundfile.write(tmp_path / "audio/s1-low-0.flac", samples, rate)
    table.write_text(table.read_text().replace("s1-low-0.wav", "s1-low-0.flac"))
    cv.main(config)
    leak = "LEAK: identical audio in folds 0, 1: audio/s0-low-0, audio/s1-low-0"
    assert leak in capsys.readouterr().out
    assert leak in (config.out / "report.html").read_text()
    assert leak in json.loads((config.out / "protocol.json").read_text())["leaks"]
    with table.open() as file:
        rows = list(csv.reader(file))
    rows[1][3] = "g2"  # a group column that cuts through speaker s0
    with table.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    with pytest.raises(WorkError, match="speaker 's0' stands in folds 0"):
        cv.main(replace(config, out=tmp_path / "two"))


def test_random_folds_are_marked_everywhere(config: cv.Config, table: Path, capsys: pytest.CaptureFixture[str]):
    lines = [",".join(line.split(",")[:2]) for line in table.read_text().splitlines()]
    table.write_text("\n".join(lines))
    with pytest.raises(CallError, match="speaker-independent folds are impossible"):
        cv.main(config)
    cv.main(replace(config, random_folds=True))
    assert "NOT speaker-independent" in capsys.readouterr().out
    assert "NOT SPEAKER-INDEPENDENT" in (config.out / "report.html").read_text()
    assert "folds:5by-RANDOM" in json.loads((config.out / "summary.json").read_text())["signature"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"root": None}, "needs --root"),
        ({"corpus": "synthetic"}, "takes no --root"),
        ({"epochs": 3}, "two ways"),
        ({"train_size": 7}, "multiple of the 2 classes and at most 32"),
        ({"train_size": 34}, "at most 32"),
        ({"folds": 9}, "only 6 speakers"),
        ({"seeds": 0}, "--seeds 0: at least 1"),
        ({"max_seconds": float("nan")}, "--max-seconds nan"),
        ({"dropout": 1.0}, "--dropout 1"),
        ({"learning_rate": float("nan")}, "--learning-rate"),
        ({"lld_window": 10.0}, "--lld-window 10"),
        ({"average_frames": 4}, "--average-frames 4 is for heads that look at every frame, not for --head mean"),
        ({"head": "mlp", "average_frames": 0}, "--average-frames 0: at least 1"),
        ({"classes": "low,happy"}, "labelled happy"),
    ],
)
def test_wrong_calls(config: cv.Config, changes: dict, message: str):
    with pytest.raises(CallError, match=message):
        cv.main(replace(config, **changes))
    assert not config.out.exists()


CHANGES_NO_SCORE = {"cache": Path("x"), "out": Path("x"), "parallel": 3, "memory": 3.0, "jobs": 3, "save": True, "final": True,
                    "state_seconds": 1.0}  # fmt: skip
CHANGES_SCORES = {
    "corpus": "emodb", "root": Path("x"), "classes": "low,high", "features": "wav2vec", "weights": "random:0", "layer": "z",
    "precision": "bfloat16", "text": "bert", "text_model": "x", "tags": "keep", "crop": "centre", "max_seconds": 1.0,
    "lld_window": 25.0, "lld_hop": 10.0, "strict": True, "head": "mlp", "train_size": 8, "folds": 2, "random_folds": True,
    "exclude_repeated_text": True, "show": ("x",), "validate": True, "seeds": 3, "updates": 151, "epochs": 3,
    "average_frames": 2, "batch_size": 8, "learning_rate": 2e-2, "dropout": 0.5,
}  # fmt: skip
HOSTS = {"coordinator": "localhost:1", "processes": 2, "process": 0}
"""Every flag with another value than `config` has; those of hosts go together."""


def test_hash_names_what_changes_scores_and_nothing_else(config: cv.Config):
    known = cv.config_hash(cv.resolve(config))
    for name, other in CHANGES_NO_SCORE.items():
        assert getattr(config, name) != other
        assert cv.config_hash(cv.resolve(replace(config, **{name: other}))) == known, name
    joined = replace(config, **HOSTS)
    assert cv.config_hash(cv.resolve(joined)) == known
    assert "--coord" not in command_line("jaxser.cv", joined, cv.NOT_IN_HASH)
    # Some of these contradict others: they are not resolved.
    others = {cv.config_hash(replace(cv.resolve(config), **{name: other})): name for name, other in CHANGES_SCORES.items()}
    assert list(others.values()) == list(CHANGES_SCORES)
    assert known not in others
    assert {field.name for field in fields(cv.Config)} == CHANGES_NO_SCORE.keys() | CHANGES_SCORES.keys() | HOSTS.keys()


def test_memory_that_holds_no_batch_is_named(config: cv.Config):
    with pytest.raises(CallError, match=r"1e-06 GiB on a device, and two tables of 64 .*: give as much with --memory"):
        cv.main(replace(config, head="attention", memory=1e-6))


def test_the_command_itself(table: Path, tmp_path: Path):
    flags = [
        "--corpus",
        "csv",
        "--root",
        table,
        "--head",
        "mean",
        "--epochs",
        2,
        "--cache",
        tmp_path / "c",
        "--jobs",
        2,
    ]
    done = command(*flags, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "UA" in done.stdout
    assert done.stderr == ""  # no progress bar where there is no terminal
    (run,) = (tmp_path / "runs").iterdir()
    assert len(run.name) == 12
    again = command(*flags, folder=tmp_path)
    assert again.stdout == done.stdout


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--corpus", "ravdess", "--root", "nowhere"], 2, "jaxser.cv: --root nowhere: no such folder"),
        (["--corpus", "csv", "--root", "t.csv"], 1, "jaxser.cv: none of 2 utterances can be used"),
        (["--head", "lstm"], 2, "invalid choice"),
    ],
)
def test_errors_are_one_line_and_leave_nothing(tmp_path: Path, flags: list[str], code: int, message: str):
    (tmp_path / "t.csv").write_text("path,label,speaker\na.wav,x,1\nb.wav,y,2\n")
    done = command(*flags, "--cache", tmp_path / "cache", folder=tmp_path)
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    if "invalid" not in message:
        assert done.stderr.count("\n") == 1
    assert done.stdout == ""
    assert not list(tmp_path.rglob("summary.json"))
