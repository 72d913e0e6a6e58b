"""`kill -9` at random moments of five commands: the same command again ends as if nothing had happened.

Ten kills in every run of the tests; fifty with `python -m pytest -m slow -s tests/test_kills.py`.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import LITTLE, apart, write_table, write_tone

from jaxser import checkpoint, wav2vec

SCORES = ("scores.csv", "predictions.csv", "confusion.csv", "losses.csv", "cells.csv", "labels.csv", "labels.csv.json")
"""What must be the same to the byte, besides the parts of stores."""


@dataclass(frozen=True)
class Command:
    """A command, what it needs, and how long it takes undisturbed."""

    module: str
    flags: Sequence[str]
    seconds: float = 0.0

    def start(self, folder: Path) -> subprocess.Popen:
        """Begin it in a folder, in a process group of its own."""
        folder.mkdir(parents=True, exist_ok=True)
        line = [sys.executable, "-m", self.module, *self.flags]
        where = {"cwd": folder, "env": apart() | {"PYTHONPATH": str(Path(__file__).parents[1])}}
        with (folder / "said").open("a") as said:
            return subprocess.Popen(line, stdout=said, stderr=said, start_new_session=True, **where)

    def finish(self, folder: Path) -> float:
        """Run it to its end; how many seconds that took."""
        began, process = time.monotonic(), self.start(folder)
        assert process.wait(timeout=300) == 0, (folder / "said").read_text()
        assert "Traceback" not in (folder / "said").read_text()
        return time.monotonic() - began


@dataclass(frozen=True)
class Calm:
    """The commands, and the folder below which each has worked undisturbed, under its name."""

    commands: dict[str, Command]
    home: Path


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Calm:
    """The five, on small corpora; each works in the folder it is started in."""
    torch = pytest.importorskip("torch", reason="torch is not installed: pip install '.[convert]'")
    from test_convert import ARGS, TENSORS

    home = tmp_path_factory.mktemp("given")
    table, weights = write_table(home / "corpus"), home / "weights"
    wav2vec.save(weights, LITTLE, wav2vec.random_params(LITTLE, 0), {})
    torch.save({**ARGS, "model": TENSORS}, home / "given.pt")
    lines = ["path,label,speaker"]
    for i in range(300):
        lines.append(f"{write_tone(home / 'many' / f'{i:03}.wav', 0.3, 100 + i, i).name},{'ab'[i % 2]},s{i % 6}")
    (home / "many" / "many.csv").write_text("\n".join(lines) + "\n")
    cv = ["--corpus", "csv", "--root", str(table), "--cache", "cache", "--out", "run"]
    cv += ["--features", "lld", "--head", "attention", "--updates", "3000", "--save", "--final", "--state-seconds", "0.1"]
    paper = ["--figure", "2", "--head", "mean", "--corpus", "csv", "--root", str(table), "--weights", str(weights)]
    paper += ["--control", "none", "--seeds", "1", "--updates", "400", "--cache", "cache"]
    model = ["--corpus", "csv", "--root", str(table), "--features", "wav2vec", "--weights", str(weights), "--head", "mean"]
    model = Command("jaxser.cv", [*model, "--updates", "50", "--save", "--cache", "cache", "--out", "run"])
    model.finish(home / "model")
    given = {
        "extract": Command("jaxser.extract", ["--corpus", "csv", "--root", str(home / "many" / "many.csv"), "--features", "lld",
                                              "--cache", "cache"]),
        "cv": Command("jaxser.cv", cv),
        "paper": Command("jaxser.paper", paper),
        "predict": Command("jaxser.predict", [str(home / "model" / "run"), str(home / "many"), "--out", "labels.csv",
                                              "--cache", "cache"]),
        "convert": Command("convert.wav2vec", [str(home / "given.pt"), "weights"]),
    }  # fmt: skip
    for name, command in given.items():
        given[name] = Command(command.module, command.flags, command.finish(home / "whole" / name))
    return Calm(given, home / "whole")


def outcome(folder: Path) -> dict[str, object]:
    """Everything that has to be the same: bytes of scores and stores, arrays of checkpoints, summaries but for their time."""
    found: dict[str, object] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = str(path.relative_to(folder))
        if path.name in SCORES or path.name.startswith("part-"):
            found[name] = path.read_bytes()
        if path.name == "summary.json":
            found[name] = {key: value for key, value in json.loads(path.read_text()).items() if key != "seconds"}
        if path.name == "metadata" and path.parent.name == "about":
            kind = json.loads(path.read_text())["kind"]
            found[name] = checkpoint.tree_digest(checkpoint.load(path.parents[1], kind)[0])
    return found


def half_done(folder: Path) -> list[str]:
    """What a finished command should not have left behind."""
    names = [str(path.relative_to(folder)) for path in folder.rglob("*")]
    return [name for name in names if "training" in name or "orbax-checkpoint-tmp" in name or Path(name).name == ".lock"]


def kill_at_random(calm: Calm, kills: int, home: Path) -> None:
    """Kill the commands in turn, up to three times before each is let finish, and compare with undisturbed ones."""
    random.seed(0)
    whole = {name: outcome(calm.home / name) for name in calm.commands}
    done, finished, after = dict.fromkeys(whole, 0), 0, dict.fromkeys(whole, 0)
    while sum(done.values()) < kills:
        name = sorted(whole)[finished % len(whole)]
        command, folder = calm.commands[name], home / f"{finished}-{name}"
        for _ in range(min(random.choice((1, 2, 3)), kills - sum(done.values()))):
            process = command.start(folder)
            try:
                process.wait(timeout=random.uniform(0.1, 1.0) * command.seconds)
                after[name] += 1  # it was faster this time: that is no kill
                continue
            except subprocess.TimeoutExpired:
                pass
            if random.random() < 0.5:
                process.kill()  # its workers are left to see for themselves
            else:
                os.killpg(process.pid, signal.SIGKILL)
            if process.wait() == 0:
                after[name] += 1  # it ended in the moment before
                continue
            assert process.returncode == -signal.SIGKILL
            done[name] += 1
        command.finish(folder)
        assert outcome(folder) == whole[name], f"{name} after kills: see {folder}"
        assert half_done(folder) == []
        shutil.rmtree(folder)
        finished += 1
    counts = ", ".join(f"{name} {count}" for name, count in done.items())
    print(
        f"\n{sum(done.values())} kills ({counts}; {sum(after.values())} came too late), {finished} times finished: all the same"
    )


def test_ten_random_kills(calm: Calm, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with capsys.disabled():
        kill_at_random(calm, 10, tmp_path)


@pytest.mark.slow
def test_fifty_random_kills(calm: Calm, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with capsys.disabled():
        kill_at_random(calm, 50, tmp_path)


def test_what_is_compared_is_there(calm: Calm):
    found = {name: outcome(calm.home / name) for name in calm.commands}
    kinds = {name: {Path(path).name for path in paths} for name, paths in found.items()}
    assert sum(path.endswith(".npy") for path in found["extract"]) == 3
    assert {"scores.csv", "predictions.csv", "confusion.csv", "summary.json", "metadata"} <= kinds["cv"]
    assert {"cells.csv", "scores.csv", "summary.json"} <= kinds["paper"]
    assert "labels.csv" in kinds["predict"]
    assert kinds["convert"] == {"metadata"}
