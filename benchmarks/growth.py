"""python -m benchmarks.growth: what a run costs among many runs beside what one costs among few."""

import sys
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from benchmarks.calls import Turn, filling, our_turn, pace_of
from benchmarks.cells import CELLS, Cell
from benchmarks.timing import OtherLoad, conclude, machine, run_benchmark, say, stamp, table
from jaxser import devices, turns

FEW, MANY = 25, 125
"""Numbers of runs whose times are set beside each other."""
SIDES = {"few": FEW, "again": FEW, "many": MANY}
"""What is timed. Few runs stand beside themselves too: what the machine alone makes of a ratio whose value is one."""
CALL = 1.0
"""Seconds of a call, about, where an update of all runs takes no longer. The sides alternate call by call, and each call is set
beside its neighbours, for a machine that others share changes its speed from second to second; but what a call and going from
run to run cost by themselves, next to nothing in the command's calls of three seconds, must be little here too."""
ROUND = 12.0
"""Seconds that each side has in a round, at the least."""


@dataclass(frozen=True)
class Config:
    """Time the training of 25 and of 125 runs. Takes fifty minutes on two cores; nothing else should run meanwhile."""

    cells: tuple[str, ...] = CELLS
    """Heads with their features: lld, nano or large (those of wav2vec)."""
    size: Literal["ravdess", "iemocap"] = "ravdess"
    """Whose number of utterances and whose lengths."""
    rounds: int = 5
    """How often everything is made anew and timed."""
    json: Path | None = None
    """Write everything measured to this file as well."""


def main(config: Config) -> None:
    """The whole benchmark."""
    devices.each_core()
    found: dict[str, Any] = {"machine": machine(), "command": " ".join(["python -m benchmarks.growth", *sys.argv[1:]])}
    watch, cells = OtherLoad(), [Cell(*name.split(), config.size) for name in config.cells]
    with tempfile.TemporaryDirectory(prefix="jaxser-compiled-") as compiled:  # for the rounds after the first
        jax.config.update("jax_compilation_cache_dir", compiled)
        found |= {"cells": {cell.name: growth_of(cell, config.rounds) for cell in cells}}
    found |= {"devices": jax.local_device_count(), "load": watch.share()}
    conclude(found, report(found), config.json)


def growth_of(cell: Cell, rounds: int) -> dict[str, dict[str, list[float]]]:
    """Of each side, round by round: `seconds` of an update of one run, the median of its calls; and `beside`, the median of what
    it takes in each cycle beside the few runs.

    A cycle is a call of each side, the next one the other way about. Each round makes everything anew, in another order: where
    in memory things come to lie moves some cells by some hundredths.
    """
    few_calls, updates = _calls_of(cell)
    found: dict[str, dict[str, list[float]]] = {side: {"seconds": [], "beside": []} for side in SIDES}
    for number in range(rounds):
        order = np.roll(list(SIDES), number)
        sides = {side: our_turn("jaxser", cell, SIDES[side], updates[SIDES[side]]) for side in order}
        for turn in sides.values():
            turn()  # compiles
        paces: dict[str, list[float]] = {side: [] for side in SIDES}
        began = time.monotonic()
        while time.monotonic() - began < len(SIDES) * ROUND:
            for side in order:
                paces[side].append(pace_of(sides[side], 1 if side == "many" else few_calls))
            order = order[::-1]
        for side, of in found.items():
            of["seconds"].append(float(np.median(paces[side])))
            of["beside"].append(float(np.median(np.divide(paces[side], paces["few"]))))
    say(f"{cell.name}: a run of {MANY} costs {np.median(found['many']['beside']):.3f} times one of {FEW}")
    return found


def _calls_of(cell: Cell) -> tuple[int, dict[int, int]]:
    """In how many calls few runs make the updates of one call of many, and the updates of a run in a call of either."""
    make: partial[Turn] = partial(our_turn, "jaxser", cell, 2)
    _, _, of_two = filling(make, CALL, turns.ROWS // 2)
    updates = round(2 * of_two / MANY)
    if updates >= turns.FEWEST:  # the command's calls are equally long, whatever the number of runs
        return 1, {FEW: updates * MANY // FEW, MANY: updates}
    # Here it makes the fewest updates of a run in each. So many take too long to be timed: half a second of few runs.
    updates = max(1, round(of_two / FEW))
    return MANY // FEW, {FEW: updates, MANY: updates}


def report(found: dict[str, Any]) -> str:
    """Everything as Markdown."""
    header = ["cell", f"us an update, {FEW} runs", f"{MANY} runs", f"{MANY} beside {FEW}", "lowest", "highest"]
    header += [f"{FEW} beside {FEW}", "lowest", "highest"]
    rows = []
    for name, of in found["cells"].items():
        medians = [f"{1e6 * np.median(of[side]['seconds']):.1f}" for side in ("few", "many")]
        ratios = [f"{f(of[side]['beside']):.3f}" for side in ("many", "again") for f in (np.median, np.min, np.max)]
        rows.append([name, *medians, *ratios])
    return "\n".join([*stamp(found), "", table(header, rows)])


if __name__ == "__main__":
    run_benchmark("benchmarks.growth", Config, main)
