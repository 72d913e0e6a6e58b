"""How many work at something, what is read, and what is said at Ctrl-C."""

import dataclasses
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxser import cgroups, command, predict


@pytest.mark.parametrize("group", ["", "slurm/job_7", "slurm/job_7/step_0"])
@pytest.mark.parametrize(
    ("allowed", "cores"),
    [
        ("max 100000", 8),
        ("200000 100000", 2),
        ("250000 100000", 3),
        ("20000 100000", 1),
        ("1600000 100000", 8),
        ("no such words", 8),
        (None, 8),
    ],
)
def test_a_container_has_the_cores_that_its_share_of_their_time_fills(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allowed: str | None, cores: int, group: str
):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    monkeypatch.setattr(cgroups, "ROOT", tmp_path)
    monkeypatch.setattr(cgroups, "OWN", tmp_path / "own")
    (tmp_path / "own").write_text("0::/slurm/job_7/step_0\n")
    (tmp_path / group).mkdir(parents=True, exist_ok=True)
    if allowed is not None:
        (tmp_path / group / "cpu.max").write_text(allowed + "\n")
    assert command.workers() == cores
    assert command.workers(5) == 5  # who states a number is heeded


@pytest.mark.parametrize(("keeps", "more"), [(True, "; what is done is kept, the same command goes on"), (False, "")])
def test_at_ctrl_c_only_who_keeps_something_promises_it(keeps: bool, more: str):
    code = f"""
from dataclasses import dataclass
from jaxser.command import run_command

@dataclass(frozen=True)
class Config:
    keeps = {keeps}

def main(config):
    raise KeyboardInterrupt

run_command("a command", Config, main)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (130, f"a command: interrupted{more}\n")


@dataclasses.dataclass(frozen=True)
class NoFlags:
    pass


def test_paths_on_standard_input_need_not_be_utf8(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9.wav\nna\xc3\xafve.wav\n"), "utf-8"))
    monkeypatch.setattr(sys, "argv", ["x"])
    found = []
    command.run_command("jaxser.predict", NoFlags, lambda config: found.extend(predict.found("-")))
    assert [os.fsencode(path) for path in found] == [b"caf\xe9.wav", b"na\xc3\xafve.wav"]


PRINTS = """
import os, sys
from dataclasses import dataclass
from jaxser.command import run_command

@dataclass(frozen=True)
class Config:
    pass

run_command("a command", Config, lambda config: print("\\u540d\\u524d \\u00e9", os.fsdecode(b"caf\\xe9")))
"""


def test_names_of_any_alphabet_go_into_files_and_pipes():
    there = os.environ | {"PYTHONIOENCODING": "latin-1"}
    done = subprocess.run([sys.executable, "-c", PRINTS], capture_output=True, timeout=60, env=there)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == "\u540d\u524d \u00e9 ".encode() + b"caf\xe9" + os.linesep.encode()


class Terminal(io.TextIOWrapper):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("alphabet", "shown"), [("latin-1", b"\\u540d \xe9 \\udce9"), ("utf-8", b"\xe5\x90\x8d \xc3\xa9 \\udce9")]
)
def test_a_terminal_shows_what_it_can(alphabet: str, shown: bytes):
    stream = Terminal(io.BytesIO(), alphabet)
    command.take_any_name(stream)
    stream.write("\u540d \u00e9 \udce9")
    stream.flush()
    assert stream.buffer.getvalue() == shown
