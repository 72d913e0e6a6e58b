"""How time is taken: systems in turn, round after round, so that a machine that drifts drifts for all of them."""

import os
import platform
import resource
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
import tyro

from jaxser.devices import processor
from jaxser.errors import CallError
from jaxser.files import write_json

LIBRARIES = ("jax", "jaxlib", "flax", "torch", "fairseq", "numpy", "soundfile")
OTHER_LOAD = 0.05
"""Share of all cores that other programs may take before a run is no result."""


@dataclass(frozen=True)
class Timing:
    """Seconds of the first call, which compiles, and of the later ones."""

    first: float
    rounds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Seconds a call."""
        return statistics.median(self.rounds)

    @property
    def compiling(self) -> float:
        """Seconds that the first call took longer than a later one."""
        return max(0.0, self.first - self.median)

    def per_second(self, amount: float) -> dict[str, float]:
        """Work a second: at the median, and at the slowest and fastest round."""
        return {
            "median": amount / self.median,
            "low": amount / max(self.rounds),
            "high": amount / min(self.rounds),
        }


def take_turns(calls: Mapping[Any, Callable[[], object]], rounds: int) -> dict[Any, Timing]:
    """Time every call once a round, after a first round that is kept apart. A call returns when its work is done."""
    first, later = {}, {name: [] for name in calls}
    for name, call in calls.items():
        first[name] = seconds_of(call)
        say(f"{' '.join(map(str, name)) if isinstance(name, tuple) else name}: {first[name]:.2f} s, the first call")
    for _ in range(rounds):
        for name, call in calls.items():
            later[name].append(seconds_of(call))
    return {name: Timing(first[name], tuple(later[name])) for name in calls}


def seconds_of(call: Callable[[], object]) -> float:
    """Wall seconds of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def ratio(slow: Timing, fast: Timing, of_slow: float = 1.0, of_fast: float = 1.0) -> dict[str, float]:
    """How many times as fast the second system is, round by round: median, lowest and highest. `of_` is the work a call."""
    each = [(a / of_slow) / (b / of_fast) for a, b in zip(slow.rounds, fast.rounds, strict=True)]
    return {"median": statistics.median(each), "low": min(each), "high": max(each)}


class OtherLoad:
    """Measures the share of all cores that other programs take, from making it to `share()`."""

    def __init__(self) -> None:
        self.before = self._busy(), self._own(), time.monotonic()

    def share(self) -> float | None:
        """0 for an idle machine; None where the system does not tell (not Linux)."""
        busy, own, now = self._busy(), self._own(), time.monotonic()
        if busy is None or self.before[0] is None:
            return None
        others = (busy - self.before[0]) - (own - self.before[1])
        return max(0.0, others / ((now - self.before[2]) * (os.cpu_count() or 1)))

    @staticmethod
    def _busy() -> float | None:
        try:
            user, nice, system, _idle, _wait, irq, soft, *_ = map(
                int, Path("/proc/stat").read_text().split("\n")[0].split()[1:]
            )
        except (OSError, ValueError):
            return None
        return (user + nice + system + irq + soft) / os.sysconf("SC_CLK_TCK")

    @staticmethod
    def _own() -> float:
        ended = sum(
            usage.ru_utime + usage.ru_stime
            for usage in (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
        )
        return ended + _seconds_below(os.getpid())


def _seconds_below(process: int) -> float:
    """What the living processes below one have taken of the cores, such as those in which torch compiles: the system adds it to
    its own when they end."""
    every = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended
            numbers = path.read_text(errors="replace").rpartition(")")[2].split()
            every[int(path.parent.name)] = int(numbers[1]), sum(map(int, numbers[11:15]))
    ticks, some = 0, {process}
    while some := {number for number, (parent, _) in every.items() if parent in some}:
        ticks += sum(every[number][1] for number in some)
    return ticks / os.sysconf("SC_CLK_TCK")


def peak_mib(module: str, *arguments: str) -> float:
    """Peak resident memory of `python -m module arguments`, run by itself, in MiB."""
    code = (
        "import resource, subprocess, sys;"
        "subprocess.run([sys.executable, '-m', *sys.argv[1:]], check=True, stdout=subprocess.DEVNULL);"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    done = subprocess.run([sys.executable, "-c", code, module, *arguments], check=True, stdout=subprocess.PIPE, text=True)
    return int(done.stdout) / 1024


def machine() -> dict[str, Any]:
    """What the figures were taken on and with."""
    versions = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "load_before": os.getloadavg()[0],
        "versions": versions,
    }


def accelerators() -> str:
    """The devices that are no CPU's, as "1 NVIDIA H200"; nothing where there are none. Sets jax to work, so it is for the
    end."""
    found = [device.device_kind for device in jax.local_devices() if device.platform != "cpu"]
    return f"{len(found)} {found[0]}" if found else ""


def stamp(found: Mapping[str, Any]) -> list[str]:
    """Two lines for the head of a report: machine and versions, and how busy it was."""
    processors = ", ".join(filter(None, (accelerators(), found["machine"]["processor"])))
    versions = ", ".join(f"{name} {value}" for name, value in found["machine"]["versions"].items())
    load = "unknown" if found["load"] is None else f"{found['load']:.1%}"
    return [
        f"{processors}, {found['machine']['cores']} cores, {found['machine']['system']}; {versions}",
        f"load before {found['machine']['load_before']:.2f}; other programs during the run {load} of the machine",
    ]


def keep(found: Mapping[str, Any], json: Path | None) -> None:
    """Write what is found by now to `json`, where that is given: so much is left, whatever ends the benchmark."""
    if json:
        write_json(json, {**found, "accelerators": accelerators()})


def conclude(found: Mapping[str, Any], report: str, json: Path | None) -> None:
    """Print what was found, write it to `json` where that is given, and exit with 1 where the machine was too busy for it to
    count: `found["load"]` is the share that other programs took."""
    print(report)
    keep(found, json)
    load = found["load"]
    if load is not None and load > OTHER_LOAD:
        say(f"NO RESULT: other programs took {load:.0%} of the machine meanwhile; at most {OTHER_LOAD:.0%} is allowed")
        sys.exit(1)


def run_benchmark(name: str, config: type[Any], main: Callable[[Any], None]) -> None:
    """Run a benchmark from the command line; where something that it needs is missing, one line and exit 2. What ends a process
    that has had its time (SIGTERM) is heard as Ctrl-C is: exit 130, where `main` does not make do with what it has by then."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        main(tyro.cli(config, prog=f"python -m {name}"))
    except (CallError, ImportError) as error:
        say(f"{name}: {error}")
        sys.exit(2)
    except KeyboardInterrupt:
        say(f"{name}: interrupted")
        sys.exit(130)


def say(text: str) -> None:
    """Progress goes to stderr."""
    print(text, file=sys.stderr, flush=True)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, its first columns as text and the others as numbers."""
    rule = ["---"] * 3 + ["---:"] * (len(header) - 3)
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, rule, *rows])
