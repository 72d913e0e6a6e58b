"""`kill -9` in the midst of five commands: the same command again ends as if nothing had happened.

Two kills of each in every run of the tests, once something of the work is done; fifty at any moments at all with
`python -m pytest -m slow -s tests/test_kills.py`.
"""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from conftest import LITTLE, apart, write_table, write_tone

from jaxser import checkpoint, wav2vec

SCORES = ("scores.csv", "predictions.csv", "confusion.csv", "losses.csv", "cells.csv", "labels.csv", "labels.csv.json",
          "config.json", "protocol.json", "table.txt")  # fmt: skip
"""What must be the same to the byte, besides the parts of stores."""


@dataclass(frozen=True)
class Command:
    """A command, what it needs, and what shows that some of its work is done: paths that match `mark`, or more rows of labels.

    How long it takes undisturbed, and how much of that is left at the first of these marks.
    """

    module: str
    flags: Sequence[str]
    mark: str = "$"
    pause: float = 0.2
    """The most seconds from a mark to a kill: what is converted is whole soon after it is begun."""
    seconds: float = 0.0
    left: float = 0.0

    def marks(self, folder: Path) -> set[str]:
        """Those that are there."""
        found = set()
        for where, folders, files in os.walk(folder):  # which minds nothing that goes meanwhile
            for name in (*folders, *files):
                with suppress(OSError):
                    path = Path(where, name)
                    if re.search(self.mark, str(path.relative_to(folder))):
                        rows = path.read_bytes().count(b"\n") - 1 if path.suffix == ".csv" else ""
                        found |= {f"{path} {path.stat().st_ino} {rows}"} if rows != 0 else set()
        return found

    def start(self, folder: Path) -> subprocess.Popen:
        """Begin it in a folder, in a process group of its own."""
        folder.mkdir(parents=True, exist_ok=True)
        line = [sys.executable, "-m", self.module, *self.flags]
        where = {"cwd": folder, "env": apart() | {"PYTHONPATH": str(Path(__file__).parents[1])}}
        with (folder / "said").open("a") as said:
            return subprocess.Popen(line, stdout=said, stderr=said, start_new_session=True, **where)

    def start_and_see(self, folder: Path) -> subprocess.Popen:
        """Begin it, and wait until there is one more mark, or it has ended."""
        before, process = self.marks(folder), self.start(folder)
        while process.poll() is None and self.marks(folder) <= before:
            time.sleep(0.005)
        return process

    def finish(self, folder: Path) -> "Command":
        """Run it to its end; the same command, with how long that took."""
        began, process = time.monotonic(), self.start_and_see(folder)
        marked = time.monotonic()
        assert process.wait(timeout=300) == 0, (folder / "said").read_text()
        assert "Traceback" not in (folder / "said").read_text()
        return replace(self, seconds=time.monotonic() - began, left=time.monotonic() - marked)


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
    for i in range(400):  # four parts of a store
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
                                              "--cache", "cache"], r"part-.*\.json$"),
        "cv": Command("jaxser.cv", cv, r"training/.*/\d+$"),
        "paper": Command("jaxser.paper", paper, r"part-.*\.json$|summary\.json$"),
        "predict": Command("jaxser.predict", [str(home / "model" / "run"), str(home / "many"), "--out", "labels.csv",
                                              "--cache", "cache"], r"labels\.csv$"),
        "convert": Command("convert.wav2vec", [str(home / "given.pt"), "weights"], "^weights", 0.0),
    }  # fmt: skip
    for name, command in given.items():
        given[name] = command.finish(home / "whole" / name)
    return Calm(given, home / "whole")


def outcome(folder: Path) -> dict[str, object]:
    """Everything that has to be the same: bytes of scores and stores, arrays of checkpoints, summaries but for their time."""
    found: dict[str, object] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = str(path.relative_to(folder))
        if "orbax-checkpoint-tmp" in name:
            continue  # of somebody who was killed: see `half_done`
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


@pytest.mark.parametrize("name", ["extract", "cv", "paper", "predict", "convert"])
def test_killed_twice_in_the_midst_of_its_work(calm: Calm, tmp_path: Path, name: str):
    command, whole, generator = calm.commands[name], outcome(calm.home / name), random.Random(name)
    for attempt in range(5):  # a kill that comes too late is none: then all begins anew
        folder, kills = tmp_path / str(attempt), 0
        while kills < 2:
            process = command.start_and_see(folder)
            time.sleep(generator.uniform(0, min(command.pause, command.left / 4)))
            process.kill()
            if process.wait() != -signal.SIGKILL or outcome(folder) == whole:
                break
            kills += 1
        else:
            break
    assert kills == 2
    before = (folder / "said").read_text()
    command.finish(folder)
    assert outcome(folder) == whole
    assert half_done(folder) == []
    if name == "cv":  # the others go on from what they have finished, without a word
        assert "going on after" in before
        assert "going on after" in (folder / "said").read_text().removeprefix(before)


@pytest.mark.slow
def test_fifty_random_kills(calm: Calm, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with capsys.disabled():
        kill_at_random(calm, 50, tmp_path)


def test_what_is_compared_is_there(calm: Calm):
    found = {name: outcome(calm.home / name) for name in calm.commands}
    kinds = {name: {Path(path).name for path in paths} for name, paths in found.items()}
    assert sum(path.endswith(".npy") for path in found["extract"]) == 4
    run = {"scores.csv", "predictions.csv", "confusion.csv", "config.json", "protocol.json", "summary.json"}
    assert run | {"metadata"} <= kinds["cv"]
    assert run | {"cells.csv", "table.txt"} <= kinds["paper"]
    assert "labels.csv" in kinds["predict"]
    assert kinds["convert"] == {"metadata"}
