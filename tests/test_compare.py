"""Two runs beside each other, from their folders alone."""

import csv
import json
import re
import shutil
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import write_table
from sklearn.metrics import accuracy_score, balanced_accuracy_score

from jaxser import compare, cv, files, metrics, results, wording
from jaxser.errors import CallError


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the runs a, which hardly trained, and b."""
    home = tmp_path_factory.mktemp("runs")
    flags = {"corpus": "csv", "root": write_table(home), "features": "lld", "head": "mean", "seeds": 2}
    cv.main(cv.Config(**flags, updates=3, cache=home / "cache", out=home / "a"))
    cv.main(cv.Config(**flags, updates=150, learning_rate=1e-2, cache=home / "cache", out=home / "b"))
    return home


@pytest.fixture
def runs(trained: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Both, for one test to change as it likes."""
    return shutil.copytree(trained / "a", tmp_path / "a"), shutil.copytree(trained / "b", tmp_path / "b")


def edit(run: Path, change, scored: bool = True) -> None:
    """Rewrite predictions.csv, each row changed by `change`, and with `scored` the UA that goes with it; a row for which that
    gives None is dropped."""
    rows = [changed for row in files.read_csv(run / "predictions.csv") if (changed := change(dict(row)))]
    with (run / "predictions.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    if not scored:
        return
    by_run = defaultdict(list)
    for row in rows:
        by_run[row["fold"], row["seed"]].append((row["label"], row["predicted"]))
    amend(
        run, "summary.json", ua_mean=float(np.mean([balanced_accuracy_score(*zip(*p, strict=True)) for p in by_run.values()]))
    )


def amend(run: Path, name: str, **change) -> None:
    """Change some values of a JSON file; None takes the key away."""
    found = json.loads((run / name).read_text()) | change
    files.write_json(run / name, {key: value for key, value in found.items() if value is not None})


def copy(run: Path, name: str) -> Path:
    return shutil.copytree(run, run.parent / name)


def test_scores_read_again_are_those_of_the_summary_and_of_scikit_learn(runs: tuple[Path, Path]):
    for folder in runs:
        run = results.read_finished(folder)
        found = metrics.estimate([run.counts()])
        summary = json.loads((folder / "summary.json").read_text())
        assert (found.value, found.low, found.high) == pytest.approx([summary[f"ua_{w}"] for w in ("mean", "low", "high")])
        every = list(run.predictions.values())
        for score, judge in ((metrics.UA, balanced_accuracy_score), (metrics.WA, accuracy_score)):
            expected = [
                [
                    judge([p.label for p in every if p.fold == fold], [p.predicted[seed] for p in every if p.fold == fold])
                    for fold in range(3)
                ]
                for seed in range(2)
            ]
            np.testing.assert_allclose(metrics.fold_scores(run.counts().sum(0), score), expected)


def test_the_better_one_is_named_and_paired_by_speaker(runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]):
    edit(runs[1], lambda row: row | {"predicted": row["label"]})  # never wrong
    compare.main(compare.Config(*runs))
    printed = capsys.readouterr().out
    gain = 1 - json.loads((runs[0] / "summary.json").read_text())["ua_mean"]
    assert f"UA: B - A = {100 * gain:+.1f} points, 95 % interval" in printed
    assert "paired over 6 speakers" in printed
    assert "corrected t-test" in printed
    assert "they differ in length: 3updates | 150updates; lr: 0.0001 | 0.01" in printed
    lines = printed.splitlines()
    assert lines[-1].startswith(f"B is better by {100 * gain:.1f} points, 95 % interval")
    compare.main(compare.Config(*runs[::-1]))
    assert capsys.readouterr().out.splitlines()[-1].replace("A is", "B is") == lines[-1]


def test_a_run_and_its_copy_cannot_be_told_apart(runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]):
    compare.main(compare.Config(runs[0], copy(runs[0], "same")))
    printed = capsys.readouterr().out
    assert "they differ in nothing" in printed
    assert "not to be had" in printed  # the t-test: no fold differs
    assert printed.splitlines()[-1] == ("these folds cannot tell them apart: B - A is +0.0 points, 95 % interval +0.0 to +0.0")


def test_folds_are_corrected_by_what_is_not_tested_on(runs: tuple[Path, Path]):
    # Also where a run was trained on a few of those: its folds overlap less, and are no reason to doubt it more.
    whole = [results.read_finished(run) for run in runs]
    few = [replace(one, card=one.card | {"folds": [fold | {"train": {"a": 2}} for fold in one.card["folds"]]}) for one in whole]
    assert compare.compared(*few).t_test == compare.compared(*whole).t_test
    folds, n = whole[0].card["folds"], whole[0].summary["utterances"]
    assert sum(fold["test"] for fold in folds) == n
    assert {sum(fold["train"].values()) for fold in folds} == {n - fold["test"] for fold in folds}  # all that is left
    by_fold = compare.compared(*whole).by_fold
    ratio = np.mean([fold["test"] / sum(fold["train"].values()) for fold in folds])
    assert compare.compared(*whole).t_test == metrics.corrected_t_test(by_fold[:, 1] - by_fold[:, 0], ratio)


def test_groups_that_hold_several_speakers_have_an_interval_too(runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]):
    # Three groups of two speakers each: as if each were one speaker.
    first = results.read_finished(runs[0])
    printed = wording.scores_in_words(first.summary)[0]
    assert re.search(r"95 % interval \S+ to \S+ over 6 speakers \((\S+ to \S+) over their 3 groups\); chance", printed)
    compare.main(compare.Config(*runs))
    over = re.search(r"^UA: .*paired over 6 speakers \((\S+ to \S+) over their 3 groups\)$", capsys.readouterr().out, re.M)[1]
    for run in runs:
        edit(run, lambda row: row | {"speaker": row["group"]})
    groups = [results.read_finished(run) for run in runs]
    found = metrics.estimate([groups[0].counts()])
    assert (found.low, found.high) == pytest.approx([first.summary[f"ua_{end}_over_groups"] for end in ("low", "high")])
    found = compare.compared(*groups).ua
    assert over == f"{wording.points(found.low)} to {wording.points(found.high)}"


@pytest.mark.parametrize(("low", "known"), [(0.02, None), (0.02, True), (0.02, False), (-0.01, False)])
def test_a_verdict_says_where_groups_do_not_tell(runs: tuple[Path, Path], low: float, known: bool | None):
    a, b = map(results.read_finished, runs)
    over = None if known is None else metrics.Estimate(0.05, 0.01 if known else -0.01, 0.09)
    last = compare.in_words(a, b, replace(compare.compared(a, b), ua=metrics.Estimate(0.05, low, 0.08), over_groups=over))[-1]
    assert last.startswith("B is better by 5.0 points, 95 % interval 2.0 to 8.0" if low > 0 else "these folds cannot tell")
    assert last.endswith("; with the 3 groups as what is independent it could be chance") == (low > 0 and known is False)


def test_verdict_follows_the_interval_alone():
    assert compare.verdict(metrics.Estimate(0.021, 0.004, 0.037)) == "B is better by 2.1 points, 95 % interval 0.4 to 3.7"
    assert compare.verdict(metrics.Estimate(-0.021, -0.037, -0.004)) == "A is better by 2.1 points, 95 % interval 0.4 to 3.7"
    once = compare.verdict(metrics.Estimate(0.021, 0.004, 0.037), once=True)
    assert once == "B is better by 2.1 points, 95 % interval 0.4 to 3.7, as far as one seed can tell"
    assert "cannot tell" in compare.verdict(metrics.Estimate(0.021, -0.004, 0.046))
    assert "too few speakers, or all differ by as much" in compare.verdict(metrics.Estimate(0.021, None, None))


def test_one_speaker_gives_a_difference_without_an_interval(runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]):
    for run in runs:
        edit(run, lambda row: row | {"speaker": "ann"})
    compare.main(compare.Config(*runs))
    printed = capsys.readouterr().out
    assert "UA: B - A = " in printed
    assert "interval" not in printed.split("UA: B - A")[1].split("\n")[0]
    assert "too few speakers" in printed.splitlines()[-1]


def test_one_seed_says_what_the_interval_leaves_out(runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]):
    for run in runs:
        edit(run, lambda row: row if row["seed"] == "0" else None)
        files.write_json(run / "summary.json", json.loads((run / "summary.json").read_text()) | {"seeds": 1, "ua_std": None})
    compare.main(compare.Config(*runs))
    printed = capsys.readouterr().out
    assert "what other seeds of A and B would change is not in the intervals" in printed
    assert "deviation of UA over seeds unknown and unknown" in printed


@pytest.mark.parametrize("smaller", [0, 1])
def test_utterances_that_one_left_out(runs: tuple[Path, Path], smaller: int, capsys: pytest.CaptureFixture[str]):
    edit(runs[smaller], lambda row: row if row["id"] != "audio/s0-low-0" else None)
    signature = json.loads((runs[smaller] / "summary.json").read_text())["signature"]
    other = re.sub(r"corpus:csv-\w+", "corpus:csv-fewer", signature)
    amend(runs[smaller], "summary.json", utterances=47, signature=other)
    with pytest.raises(CallError, match=r"has no prediction for 1 utterance\(s\) of the other, audio/s0-low-0 first; --common"):
        compare.main(compare.Config(*runs))
    compare.main(compare.Config(*runs, common=True))
    printed = capsys.readouterr().out
    assert "47 utterances of 6 speakers" in printed
    assert "taken on trust" in printed


def test_the_common_ones_are_scored_as_scikit_learn_does(runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]):
    # Each has left some out that the other has, and neither's summary is of the 42 that both have.
    left_out = [{f"audio/s0-{label}-{i}" for i in (0, 1)} | {f"audio/s4-{label}-2"} for label in ("low", "high")]
    for run, names in zip(runs, left_out, strict=True):
        edit(run, lambda row, names=names: row if row["id"] not in names else None)
        amend(run, "summary.json", utterances=45)
    differences = []
    for judge in (balanced_accuracy_score, accuracy_score):
        means = []
        for run in runs:
            by_run = defaultdict(list)
            for row in files.read_csv(run / "predictions.csv"):
                if row["id"] not in set.union(*left_out):
                    by_run[row["fold"], row["seed"]].append((row["label"], row["predicted"]))
            means.append(np.mean([judge(*zip(*pairs, strict=True)) for pairs in by_run.values()]))
        differences.append(means[1] - means[0])
    compare.main(compare.Config(*runs, common=True))
    printed = capsys.readouterr().out
    assert "42 utterances of 6 speakers" in printed
    for name, difference in zip(("UA", "WA"), differences, strict=True):
        assert f"{name}: B - A = {100 * difference:+.1f} points" in printed


def test_no_utterance_in_common(runs: tuple[Path, Path]):
    edit(runs[1], lambda row: row | {"id": f"other/{row['id']}"})
    with pytest.raises(CallError, match=r"^.*/a and .*/b have no utterance in common$"):
        compare.main(compare.Config(*runs, common=True))


def test_the_same_folder_by_another_name(runs: tuple[Path, Path], tmp_path: Path):
    (tmp_path / "link").symlink_to(runs[0])
    with pytest.raises(CallError, match="named twice"):
        compare.main(compare.Config(runs[0], tmp_path / "link"))


@pytest.mark.parametrize(
    ("file", "change"),
    [
        *(("summary.json", {key: None}) for key in ("interval_unit", "validate", "signature", "speakers", "ua_mean", "head")),
        *(("protocol.json", {key: None}) for key in ("corpus", "folds", "features", "settings", "training")),
        ("summary.json", {"interval_unit": "room"}),
        ("summary.json", {"classes": ["high", "high"]}),
        ("summary.json", {"ua_mean": 0.123}),
        ("protocol.json", {"folds": []}),
    ],
)
def test_damaged_folders_are_told_in_one_line(runs: tuple[Path, Path], file: str, change: dict):
    amend(runs[1], file, **change)
    with pytest.raises(CallError, match=r"damaged.*delete .*b and repeat its command"):
        compare.main(compare.Config(*runs))


@pytest.mark.parametrize("change", [{"fold": "-1"}, {"fold": "9999999999"}, {"fold": "x"}, {"speaker": ""}])
def test_damaged_predictions_are_told_in_one_line(runs: tuple[Path, Path], change: dict):
    for run in runs:
        edit(run, lambda row: row | change if row["id"] == "audio/s0-high-0" else row, scored=False)
    with pytest.raises(CallError, match=r"is damaged: .*delete .*a and repeat its command"):
        compare.main(compare.Config(*runs))


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("predictions.csv", {"label": "low"}, "has another label in each"),
        ("predictions.csv", {"speaker": "bob"}, "has another speaker in each"),
        ("predictions.csv", {"fold": "2"}, "has another fold in each"),
        ("predictions.csv", {"predicted": "glad"}, "damaged: in predictions.csv"),
        ("predictions.csv", {"seed": "0"}, "damaged: in predictions.csv"),
        ("summary.json", {"classes": ["low", "high"]}, "other classes"),
        ("summary.json", {"validate": True}, "--validate"),
        ("summary.json", {"utterances": 3}, "48 utterances in place of 3"),
        ("summary.json", {"signature": "jaxser:0|corpus:csv-other|head:mean"}, "the same ids stand for other recordings"),
        ("protocol.json", {"corpus": "emodb"}, "other corpora, csv and emodb"),
    ],
)
def test_what_cannot_be_compared(runs: tuple[Path, Path], file: str, change: dict, message: str):
    if file == "predictions.csv":
        whole = not {"predicted", "seed"} & set(change)
        edit(runs[1], lambda row: row | change if row["id"] == "audio/s0-high-0" else row, scored=whole)
    else:
        files.write_json(runs[1] / file, json.loads((runs[1] / file).read_text()) | change)
    with pytest.raises(CallError, match=message.replace("(", r"\(")):
        compare.main(compare.Config(*runs))


def test_a_prediction_that_stands_twice_is_damage(runs: tuple[Path, Path]):
    lines = (runs[1] / "predictions.csv").read_text().splitlines()
    (runs[1] / "predictions.csv").write_text("\n".join([*lines, lines[1]]) + "\n")
    with pytest.raises(CallError, match="stands there twice"):
        compare.main(compare.Config(*runs))


def test_folders_that_are_no_finished_run(runs: tuple[Path, Path], tmp_path: Path):
    with pytest.raises(CallError, match="nowhere is no run folder"):
        compare.main(compare.Config(runs[0], tmp_path / "nowhere"))
    with pytest.raises(CallError, match="named twice"):
        compare.main(compare.Config(runs[0], runs[0]))
    (tmp_path / "table").mkdir()
    files.write_json(tmp_path / "table" / "config.json", {"table": 1})
    files.write_json(tmp_path / "table" / "summary.json", {"cells": {}, "missing": {}, "command": "python -m jaxser.paper"})
    with pytest.raises(CallError, match=r"is a table or figure of jaxser\.paper; its runs are named in .*/table/cells\.csv$"):
        compare.main(compare.Config(runs[0], tmp_path / "table"))
    (runs[1] / "predictions.csv").write_text("id,label\n")
    with pytest.raises(CallError, match="damaged"):
        compare.main(compare.Config(*runs))
    (runs[1] / "summary.json").write_text("{")
    with pytest.raises(CallError, match="damaged"):
        compare.main(compare.Config(*runs))
    (runs[1] / "summary.json").unlink()
    with pytest.raises(CallError, match="not finished"):
        compare.main(compare.Config(*runs))
