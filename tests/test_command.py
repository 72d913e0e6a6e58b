"""How many work at something, and what is said at Ctrl-C."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxser import command


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
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allowed: str | None, cores: int
):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    monkeypatch.setattr(command, "CGROUP", tmp_path)
    if allowed is not None:
        (tmp_path / "cpu.max").write_text(allowed + "\n")
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
