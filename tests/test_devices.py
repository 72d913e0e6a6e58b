import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxser import devices
from jaxser.command import workers

ASK = """
import json, sys
from pathlib import Path
import jax
from jaxser import devices
devices.prepare(Path(sys.argv[1]))
print(json.dumps([jax.local_device_count(), jax.config.jax_compilation_cache_dir]))
"""
STATED = ("JAX_NUM_CPU_DEVICES", "JAX_COMPILATION_CACHE_DIR", "XLA_FLAGS")


def prepared(cache: Path, **stated: str) -> list:
    environment = {name: value for name, value in os.environ.items() if name not in STATED} | stated
    done = subprocess.run(
        [sys.executable, "-c", ASK, str(cache)],
        check=True,
        capture_output=True,
        text=True,
        env=environment | {"JAX_PLATFORMS": "cpu"},
    )
    return json.loads(done.stdout)


def test_each_core_is_a_device_and_there_are_two(tmp_path: Path):
    count, kept = prepared(tmp_path)
    assert count == max(2, workers())
    assert Path(kept).parent == tmp_path / "compiled"


@pytest.mark.parametrize("stated", [{"JAX_NUM_CPU_DEVICES": "3"}, {"XLA_FLAGS": "--xla_force_host_platform_device_count=3"}])
def test_who_states_devices_and_folder_is_heeded(tmp_path: Path, stated: dict[str, str]):
    assert prepared(tmp_path, JAX_COMPILATION_CACHE_DIR=str(tmp_path / "mine"), **stated) == [3, str(tmp_path / "mine")]


@given(st.integers(1, 40), st.integers(1, 4), st.integers(1, 5))
def test_runs_are_dealt_evenly_and_none_twice(runs: int, hosts: int, count: int):
    dealt = devices.dealt(runs, hosts, count)
    shares = [dealt.count(device) for device in range(hosts * count)]
    assert sum(shares) == runs
    assert max(shares) - min(shares) <= 1
