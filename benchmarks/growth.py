"""python -m benchmarks.growth: what a run costs among many runs beside what one costs among few."""

import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from scipy import stats

from benchmarks.calls import Turn, filling, our_turn, pace_of
from benchmarks.cells import CELLS, Cell
from benchmarks.timing import OtherLoad, conclude, keep, machine, run_benchmark, say, stamp, table
from jaxser import devices, turns

FEW, MANY = 25, 125
"""Numbers of runs whose times are set beside each other."""
SIDES = {"few": FEW, "many": MANY, "again": FEW}
"""What is timed. Few runs stand on both sides of many, and so beside themselves too: what the machine alone makes of a ratio
whose value is one."""
BESIDE = {"many": f"{MANY} beside {FEW}", "again": f"{FEW} beside {FEW}"}
"""The ratios that are told."""
LONGEST = 20.0
"""Seconds of the longest calls, about: of many runs of a slow head the command's own, turns.FEWEST updates of each, take
minutes. Those of few are then shortened alike, for what it takes to go from run to run must weigh as much on both sides."""
ROUND = 9.0
"""Seconds that each side has in a round, at the least."""


@dataclass(frozen=True)
class Config:
    """Time the training of 25 and of 125 runs. Takes an hour on two cores; nothing else should run then.

    Ctrl-C ends it with the cells that are done.
    """

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
        found |= {"cells": {}, "devices": jax.local_device_count(), "load": None}
        with suppress(KeyboardInterrupt):  # what is measured by then is told
            for cell in cells:
                found["cells"][cell.name] = growth_of(cell, config.rounds)
                found["load"] = watch.share()
                keep(found, config.json)
    conclude(found, report(found), config.json)


def growth_of(cell: Cell, rounds: int) -> dict[str, dict[str, list[float]]]:
    """Of each side, round by round: `seconds` of an update of one run, the median of its calls; and what it takes `beside` few
    runs, the median of the cycles: many beside the mean of the calls before and after, few again beside few.

    A cycle is a call of each side, the next one the other way about. Each round makes everything anew, in another order: where
    in memory things come to lie moves some cells by some hundredths.
    """
    updates = _updates_of(cell)
    found: dict[str, dict[str, list[float]]] = {side: {"seconds": [], "beside": []} for side in SIDES}
    for number in range(rounds):
        sides = {side: our_turn("jaxser", cell, SIDES[side], updates[SIDES[side]]) for side in np.roll(list(SIDES), number)}
        for turn in sides.values():
            turn()  # compiles
        paces: dict[str, list[float]] = {side: [] for side in SIDES}
        order, began = list(SIDES), time.monotonic()
        while time.monotonic() - began < len(SIDES) * ROUND:
            for side in order:
                paces[side].append(pace_of(sides[side]))
            order = order[::-1]
        few, many, again = (np.array(paces[side]) for side in SIDES)
        for side, beside in {"few": few / few, "many": many / ((few + again) / 2), "again": again / few}.items():
            found[side]["seconds"].append(float(np.median(paces[side])))
            found[side]["beside"].append(float(np.median(beside)))
    say(f"{cell.name}: a run of {MANY} costs {np.median(found['many']['beside']):.3f} times one of {FEW}")
    return found


def _updates_of(cell: Cell) -> dict[int, int]:
    """The updates of a run in a call of either number of runs: the command's own, or as large a part of them as LONGEST has."""
    make: partial[Turn] = partial(our_turn, "jaxser", cell, 2)
    _, _, of_two = filling(make, turns.SECONDS, turns.ROWS // 2)
    own = {count: max(turns.FEWEST, 2 * of_two / count) for count in (FEW, MANY)}
    longest = turns.SECONDS * own[MANY] * MANY / (2 * of_two)
    return {count: max(1, round(updates * min(1.0, LONGEST / longest))) for count, updates in own.items()}


def report(found: dict[str, Any]) -> str:
    """Everything as Markdown."""
    header = ["cell", f"us an update, {FEW} runs", f"{MANY} runs", BESIDE["many"], "lowest", "highest"]
    header += [BESIDE["again"], "lowest", "highest"]
    rows = []
    for name, of in found["cells"].items():
        medians = [f"{1e6 * np.median(of[side]['seconds']):.1f}" for side in ("few", "many")]
        ratios = [f"{f(of[side]['beside']):.3f}" for side in BESIDE for f in (np.median, np.min, np.max)]
        rows.append([name, *medians, *ratios])
    lines = [*stamp(found), "", table(header, rows), ""]
    if len(rows) > 2:
        lines += [f"- all cells, {of_side}: {_together(found['cells'], side)}" for side, of_side in BESIDE.items()]
    return "\n".join(lines).rstrip()


def _together(cells: dict[str, Any], side: str) -> str:
    # Of one cell the median of a few rounds errs by some hundredths; of all cells together less.
    logs = np.log([np.median(of[side]["beside"]) for of in cells.values()])
    half = stats.t.ppf(0.975, len(logs) - 1) * stats.sem(logs)
    middle, low, high = np.exp([logs.mean(), logs.mean() - half, logs.mean() + half])
    return f"geometric mean {middle:.3f}, 95 % interval over cells {low:.3f} to {high:.3f}"


if __name__ == "__main__":
    run_benchmark("benchmarks.growth", Config, main)
