"""python -m benchmarks.growth: what a run costs among many runs beside what one costs among few."""

import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from benchmarks.calls import filling, our_turn
from benchmarks.cells import CELLS, Cell
from benchmarks.timing import OtherLoad, conclude, machine, run_benchmark, say, stamp, table
from jaxser import devices, turns

GROWTH = (25, 125)
"""Numbers of runs whose times are set beside each other."""
GROWTH_TURN = 4.0
"""Seconds that either has in a round, at the least."""
SETTLING = 3
"""Calls that are not timed: the first compiles, and then the pace is found."""


@dataclass(frozen=True)
class Config:
    """Time the training of 25 and of 125 runs. Takes half an hour on two cores; nothing else should run meanwhile."""

    cells: tuple[str, ...] = CELLS
    """Heads with their features: lld, nano or large (those of wav2vec)."""
    size: Literal["ravdess", "iemocap"] = "ravdess"
    """Whose number of utterances and whose lengths."""
    rounds: int = 5
    """How often both have their turns."""
    json: Path | None = None
    """Write everything measured to this file as well."""


def main(config: Config) -> None:
    """The whole benchmark."""
    devices.each_core()
    found: dict[str, Any] = {"machine": machine(), "command": " ".join(["python -m benchmarks.growth", *sys.argv[1:]])}
    watch, cells = OtherLoad(), [Cell(*name.split(), config.size) for name in config.cells]
    with tempfile.TemporaryDirectory(prefix="jaxser-compiled-") as compiled:  # for the rounds after the first
        jax.config.update("jax_compilation_cache_dir", compiled)
        found |= {"seconds_of_an_update": {cell.name: growth_of(cell, config.rounds) for cell in cells}}
    found |= {"devices": jax.local_device_count(), "load": watch.share()}
    conclude(found, report(found), config.json)


def growth_of(cell: Cell, rounds: int) -> dict[int, list[float]]:
    """Seconds of an update of one run among few and among many, round by round.

    Both go as the commands do, in calls of some seconds; where many runs would take longer than that, both in calls of as many
    updates as they make in the time. They alternate call by call, so that a machine whose speed drifts drifts for both. Each
    round makes everything anew: where in memory things come to lie moves some cells by a tenth.
    """
    few, many = GROWTH
    _, _, updates = filling(partial(our_turn, "jaxser", cell, many), turns.SECONDS, turns.FEWEST)
    updates = updates if updates < turns.FEWEST else 0
    found: dict[int, list[float]] = {runs: [] for runs in GROWTH}
    for _ in range(rounds):
        turns_of = {runs: our_turn("jaxser", cell, runs, updates) for runs in GROWTH}
        for turn in turns_of.values():
            for _ in range(SETTLING):
                turn()
        done, seconds = dict.fromkeys(GROWTH, 0), dict.fromkeys(GROWTH, 0.0)
        while min(seconds.values()) < GROWTH_TURN:
            for runs, turn in turns_of.items():
                began = time.perf_counter()
                done[runs] += sum(turn() for _ in range(many // runs if updates else 1))
                seconds[runs] += time.perf_counter() - began
        for runs in GROWTH:
            found[runs].append(seconds[runs] / done[runs])
    say(f"{cell.name}: a run of {many} costs {np.median(growth(found)):.3f} times one of {few}")
    return found


def growth(of: Mapping[int, Sequence[float]]) -> np.ndarray:
    """What a run of many costs beside one of few, round by round."""
    few, many = (np.array(of[runs]) for runs in GROWTH)
    return many / few


def report(found: dict[str, Any]) -> str:
    """Everything as Markdown."""
    few, many = GROWTH
    header = ["cell", f"us an update, {few} runs", f"{many} runs", f"{many} beside {few}", "lowest", "highest"]
    rows = []
    for name, of in found["seconds_of_an_update"].items():
        each, medians = growth(of), [f"{1e6 * np.median(of[runs]):.1f}" for runs in GROWTH]
        rows.append([name, *medians, *(f"{value:.3f}" for value in (np.median(each), each.min(), each.max()))])
    return "\n".join([*stamp(found), "", table(header, rows)])


if __name__ == "__main__":
    run_benchmark("benchmarks.growth", Config, main)
