"""Where limits stand: in groups of both versions, nested, as a container sees them, and on systems without any."""

import os
from pathlib import Path

import pytest

from jaxser import cgroups

OF_VERSION_1 = "5:cpu,cpuacct:/a\n4:memory:/slurm/job_7\n1:name=systemd:/init.scope\n0::/system.slice\n"


@pytest.mark.parametrize(
    ("own", "name", "found"),
    [
        ("0::/slurm/job_7/step_0\n", "memory.max", ["slurm/job_7/step_0", "slurm/job_7", "slurm", "."]),
        ("0::/\n", "cpu.max", ["."]),
        (OF_VERSION_1, "memory.limit_in_bytes", ["memory/slurm/job_7", "memory/slurm", "memory", "system.slice", "."]),
        (OF_VERSION_1, "cpuacct.usage", ["cpuacct/a", "cpuacct", "system.slice", "."]),
        (None, "memory.max", []),
    ],
)
def test_groups_from_the_inside_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: str | None, name: str, found: list[str]
):
    monkeypatch.setattr(cgroups, "ROOT", tmp_path)
    monkeypatch.setattr(cgroups, "OWN", tmp_path / "own")
    if own is not None:
        (tmp_path / "own").write_text(own)
    assert list(cgroups.files(name)) == [tmp_path / folder / name for folder in found]


def test_the_innermost_is_the_one_that_this_process_is_in():
    there = [file for name in ("memory.current", "memory.usage_in_bytes") for file in cgroups.files(name) if file.exists()]
    if not there:
        pytest.skip("no groups that count memory here")
    assert f"{os.getpid()}" in there[0].with_name("cgroup.procs").read_text().split()
