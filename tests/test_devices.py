import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import Mesh

from jaxser import cgroups, devices
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


VERSIONS = {
    2: ("0::/slurm/job_7/step_0\n", ".", ("memory.max", "memory.current"), ""),
    1: ("4:memory:/slurm/job_7/step_0\n0::/\n", "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes"), "total_"),
}


@pytest.fixture(params=VERSIONS)
def limit(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Gives a group around this process a limit, in a version of cgroups."""
    own, tree, names, prefix = VERSIONS[request.param]
    monkeypatch.setattr(cgroups, "ROOT", tmp_path)
    monkeypatch.setattr(cgroups, "OWN", tmp_path / "own")
    (tmp_path / "own").write_text(own)

    def set_limit(group: str, most: str, taken: int, read: int = 0) -> None:
        folder = tmp_path / tree / group
        folder.mkdir(parents=True, exist_ok=True)
        for name, number in zip(names, (most, taken), strict=True):
            (folder / name).write_text(f"{number}\n")
        rows = f"anon 1\nactive_file 7\ninactive_file 7\n{prefix}active_file {read}\n{prefix}inactive_file {read}\n"
        (folder / "memory.stat").write_text(rows)

    return set_limit


@pytest.mark.parametrize("group", ["", "slurm/job_7", "slurm/job_7/step_0"])
def test_what_a_container_has_read_takes_no_memory(limit: Callable[..., None], group: str):
    machine = devices._available()
    assert machine > 4_000_000
    limit(group, "5000000", 4_900_000, 1_500_000)
    assert devices._available() == 3_100_000
    for unlimited in ("max", f"{2**63 - 4096}"):
        limit(group, unlimited, 4_900_000, 1_500_000)
        assert devices._available() == pytest.approx(machine, rel=0.5)


def test_the_group_with_least_room_counts(limit: Callable[..., None]):
    limit("slurm/job_7/step_0", "max", 1_000_000)
    limit("slurm/job_7", "5000000", 1_000_000)
    limit("slurm", "9000000", 8_000_000)  # others have taken most of it
    assert devices._available() == 1_000_000
    limit("slurm", "9000000", 9_500_000)
    assert devices._available() == 0


@given(st.integers(1, 40), st.integers(1, 4), st.integers(1, 5))
def test_runs_are_dealt_evenly_and_none_twice(runs: int, hosts: int, count: int):
    dealt = devices.dealt(runs, hosts, count)
    shares = [dealt.count(device) for device in range(hosts * count)]
    assert sum(shares) == runs
    assert max(shares) - min(shares) <= 1
