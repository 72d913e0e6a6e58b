import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import Mesh

from jaxser import devices
from jaxser.command import workers
from jaxser.store import aligned

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


@pytest.mark.parametrize("offset", [0, 1, 7])
def test_devices_of_a_cpu_share_an_array_where_it_lies(offset: int):
    mesh = Mesh(np.array(jax.local_devices()), ("any",))
    x = aligned((offset + 60,), np.float32)[offset:].reshape(5, 12)
    x[:] = np.arange(60).reshape(5, 12)
    found = devices.on_all({"x": x, "y": x.T}, mesh)
    assert {shard.data.unsafe_buffer_pointer() == x.ctypes.data for shard in found["x"].addressable_shards} == {not offset}
    for leaf, wanted in ((found["x"], x), (found["y"], x.T)):
        assert len(leaf.addressable_shards) == mesh.size > 1
        assert len({shard.data.unsafe_buffer_pointer() for shard in leaf.addressable_shards}) == 1
        np.testing.assert_array_equal(leaf, wanted)


def test_what_a_device_has_is_shared_by_the_others():
    first = jax.device_put(np.ones(100, np.float32), jax.local_devices()[0])
    found = devices.on_all(first, Mesh(np.array(jax.local_devices()), ("any",)))
    assert {shard.data.unsafe_buffer_pointer() for shard in found.addressable_shards} == {first.unsafe_buffer_pointer()}


def test_devices_of_a_cpu_share_its_memory(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(devices, "_available", lambda: 10**9)
    device = jax.local_devices()[0]
    assert devices.memory_for_frames(device) == pytest.approx(0.6e9)
    assert devices.memory_for_frames(device, apart=True) == pytest.approx(0.6e9 / jax.local_device_count())


def test_what_a_container_has_read_takes_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(devices, "CGROUP", tmp_path)
    machine = devices._available()
    assert machine > 3_000_000
    for name, text in {
        "max": "5000000",
        "current": "4900000",
        "stat": "anon 1\nactive_file 1000000\ninactive_file 2000000",
    }.items():
        (tmp_path / f"memory.{name}").write_text(text + "\n")
    assert devices._available() == 3_100_000
    (tmp_path / "memory.max").write_text("max\n")
    assert devices._available() == pytest.approx(machine, rel=0.5)


@given(st.integers(1, 40), st.integers(1, 4), st.integers(1, 5))
def test_runs_are_dealt_evenly_and_none_twice(runs: int, hosts: int, count: int):
    dealt = devices.dealt(runs, hosts, count)
    shares = [dealt.count(device) for device in range(hosts * count)]
    assert sum(shares) == runs
    assert max(shares) - min(shares) <= 1
