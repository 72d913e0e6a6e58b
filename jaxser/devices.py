"""What programs run on: a CPU's cores as devices, what all devices have, how much memory they have for frames, and compiled
programs kept."""

import os
import platform
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxser import cgroups
from jaxser.command import workers
from jaxser.digests import text_digest
from jaxser.store import ALIGNMENT, aligned

MOST_CORES = 4
"""So many devices of a CPU share a batch of files at the most: a batch has a row for each of them, and their products use the
other cores too."""

SHARE = 0.6
"""Of a device's free memory, what frames may take; the rest is for training."""

LIMITS = {"memory.max": ("memory.current", ""), "memory.limit_in_bytes": ("memory.usage_in_bytes", "total_")}
"""Of both versions of cgroups: where a group's limit stands, where what it and the groups inside it have taken, and how the
rows of `memory.stat` begin that count these too."""


def prepare(cache: Path) -> None:
    """Before anything else of jax: make each core of a CPU a device, and keep compiled programs in the cache folder, or in
    that which JAX_COMPILATION_CACHE_DIR names."""
    each_core()
    if not jax.config.jax_compilation_cache_dir:
        # Code for one processor may not run on another, and caches are carried about.
        kind = text_digest(f"{processor()} {platform.machine()} {workers()} cores")[:12]
        jax.config.update("jax_compilation_cache_dir", str(cache / "compiled" / kind))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


def each_core() -> None:
    """Make each core of a CPU a device, where jax is not at work yet.

    Runs, and batches of files, are then shared out among the cores, where one device would share out the rows of a single
    small product: benchmarks/RESULTS.md has the effect. There are two devices at the least, also on one core: XLA compiles for
    several in one way, however many, and for one alone in another, which rounds differently. Who states a number
    (JAX_NUM_CPU_DEVICES, XLA_FLAGS) is heeded.
    """
    stated = "JAX_NUM_CPU_DEVICES" in os.environ or "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if not stated:
        with suppress(RuntimeError):  # jax is at work already, in a program that calls ours: it keeps the devices that it has
            jax.config.update("jax_num_cpu_devices", max(2, workers()))


def for_batches() -> list[Any]:
    """The local devices that share a batch of files; of a CPU's no more than MOST_CORES."""
    found = jax.local_devices()
    return found[:MOST_CORES] if found[0].platform == "cpu" else found


def dealt(runs: int, hosts: int, devices: int) -> list[int]:
    """The device of every run: dealt in turn to the hosts and, on each, to its devices. Numbered host by host.

    No two devices differ by more than one run; each host has the runs that hosts.share gives it.
    """
    return [run % hosts * devices + run // hosts % devices for run in range(runs)]


def free_memory(device: Any) -> int | None:
    """Bytes that an accelerator has left; None on a CPU, and where it does not tell."""
    memory = device.memory_stats() if device.platform != "cpu" else None
    if not memory or "bytes_limit" not in memory:
        return None
    return memory["bytes_limit"] - memory["bytes_in_use"]


def on_all(tree: Any, mesh: Mesh) -> Any:
    """Arrays whole on all devices of a mesh. The devices of a CPU share them where they lie, so nobody may write to them later:
    however many cores there are, there is one copy, and where they do not begin as jax wants it a second."""
    if mesh.devices.flat[0].platform == "cpu":
        tree = jax.tree.map(_where_it_may_stay, tree)
    return jax.device_put(tree, NamedSharding(mesh, P()))


def _where_it_may_stay(leaf: Any) -> np.ndarray:
    x = np.asarray(leaf)
    if x.ctypes.data % ALIGNMENT == 0 and x.flags.c_contiguous:
        return x
    moved = aligned(x.shape, x.dtype)
    moved[...] = x
    return moved


def memory_for_frames(device: Any, apart: bool = False) -> float:
    """Bytes that frames may take on a device where nobody says. `apart`: where each device has some of its own, which makes a
    difference on a CPU, whose devices share the machine's memory."""
    free = free_memory(device)
    if free is None:
        together = device.platform == "cpu" and not apart
        free = _available() / (1 if together else jax.local_device_count())
    return SHARE * free


def _available() -> int:
    # Of the machine, or of the container or the job where that allows less, or of what that lies in.
    try:
        lines = Path("/proc/meminfo").read_text().split("\n")
        left = 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        left = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    for limit, (taken, prefix) in LIMITS.items():
        for file in cgroups.files(limit):
            with suppress(OSError, ValueError, KeyError):  # no such limit
                most, now, parts = (path.read_text() for path in (file, file.with_name(taken), file.with_name("memory.stat")))
                of = dict(line.split() for line in parts.splitlines())
                # What was read from files is kept as long as nobody wants the room.
                files = sum(int(of[f"{prefix}{kind}_file"]) for kind in ("active", "inactive"))
                left = min(left, max(0, int(most) - int(now) + files))
    return left


def processor() -> str:
    """The name of this machine's processor, as well as it tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n")
        return next(line.partition(": ")[2] for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
