"""The README's commands are ones that the program takes, and its defaults those of the code."""

import dataclasses
import re
import shlex
from pathlib import Path

import pytest
import tyro
from conftest import write_tone

from jaxser import compare, corpora, cv, extract, paper, predict, pretrain, wav2vec
from jaxser.architecture import LARGE
from jaxser.heads import AVERAGE_FRAMES, DROPOUT, HEADS, MLP_PARAMETERS, mlp_parameters, mlp_width

ROOT = Path(__file__).parents[1]
README, SCORES = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "benchmarks/SCORES.md"))
CALLED = {
    "jaxser.cv": cv.Config,
    "jaxser.extract": extract.Config,
    "jaxser.pretrain": pretrain.Config,
    "jaxser.paper": paper.Config,
    "jaxser.compare": compare.Config,
    "jaxser.predict": predict.Config,
}
LINES = (README + SCORES).splitlines()
COMMANDS = [line.partition("#")[0].strip() for line in LINES if line.startswith("python -m jaxser.")]


@pytest.mark.parametrize("command", [c for c in COMMANDS if "--help" not in c])
def test_commands_parse(command: str):
    _, _, module, *flags = shlex.split(command)
    config = tyro.cli(CALLED[module], args=flags)
    if module == "jaxser.pretrain":
        pretrain.check(config)
        pretrain.resolve(config)
        return
    if module == "jaxser.paper":
        paper.resolve(config)
    elif module == "jaxser.predict":
        predict.check(config)
    elif module != "jaxser.compare":
        extract.check(config)
    if module == "jaxser.cv":
        cv.resolve(config)


def test_the_python_example_runs(tmp_path: Path):
    _, example = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    wav2vec.save(tmp_path / "weights", LARGE, wav2vec.random_params(LARGE, 0), {})
    recording = write_tone(tmp_path / "recording.wav", 1.0)
    example = example.replace("PATH/TO/wav2vec-large", str(tmp_path / "weights"))
    found: dict = {}
    exec(example.replace("PATH/TO/recording.wav", str(recording)), found)  # our own text
    assert found["c"].shape == (1, 98, 512)
    assert found["frames"].tolist() == [98]


def test_the_example_of_labels_runs(table: Path, tmp_path: Path):
    example, _ = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    assert len([line for line in example.splitlines() if line]) == 3
    config = cv.Config(corpus="csv", root=table, features="lld", head="mean", updates=200, learning_rate=1e-2, save=True)
    cv.main(dataclasses.replace(config, cache=tmp_path / "cache", out=tmp_path / "emotions"))
    recording = write_tone(tmp_path / "recording.wav", 1.0, 600, rate=44_100)
    example = example.replace('"emotions"', repr(str(tmp_path / "emotions")))
    found: dict = {}
    exec(example.replace("PATH/TO/recording.wav", str(recording)), found)  # our own text
    assert found["prediction"].label == "high"
    assert set(found["prediction"].probabilities) == {"high", "low"}


def test_the_example_of_a_corpus_is_one(tmp_path: Path):
    (example,) = re.findall(r"^```csv\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    (tmp_path / "corpus.csv").write_text(example)
    corpus = corpora.read("csv", tmp_path / "corpus.csv", "all")
    assert corpus.classes == ("happy", "neither, nor", "sad")
    assert [u.speaker for u in corpus.utterances] == ["anna", "anna", "ben"]


def test_nothing_is_left_to_fill_in():
    assert "@@" not in README + SCORES


def test_exactly_two_commands_to_begin_with():
    blocks = re.findall(r"^```sh\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    assert [block.count("\n") for block in blocks] == [1, 1]
    assert blocks[0].endswith("python -m jaxser.cv\n")
    assert blocks[1].endswith("python -m pytest -n 2\n")


def test_defaults_are_those_of_the_code():
    for features in ("lld", "wav2vec"):
        assert f"`mean`, `meanmax` and `attention` train for {HEADS['mean'].updates[features]:,} updates" in README
        assert f"`mlp` for {HEADS['mlp'].updates[features]:,}" in README
    assert HEADS["mean"].updates == HEADS["meanmax"].updates == HEADS["attention"].updates
    assert f"take {AVERAGE_FRAMES['wav2vec']} consecutive frames averaged" in README
    assert AVERAGE_FRAMES["lld"] == 1
    assert f"at {DROPOUT}." in README
    for features in (34, 128, 512):
        width = mlp_width(features, 4)
        assert f"{width} at {features}" in README
        assert f"({mlp_parameters(features, width, 4):,})" in README
    assert f"{MLP_PARAMETERS:,}" in README


def test_every_file_of_a_run_folder_is_explained():
    for name in (
        "summary.json",
        "scores.csv",
        "predictions.csv",
        "confusion.csv",
        "losses.csv",
        "protocol.json",
        "report.html",
        "cells.csv",
        "figure.png",
        "model/",
    ):
        assert f"`{name}`" in README
