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

from benchmarks.calls import Turn, filling, our_turn, pace_of
from benchmarks.cells import CELLS, Cell
from benchmarks.timing import OtherLoad, conclude, machine, run_benchmark, say, stamp, table
from jaxser import devices, turns

FEW, MANY = 25, 125
"""Numbers of runs whose times are set beside each other."""
SIDES = {"few": FEW, "again": FEW, "many": MANY}
"""What is timed. Few runs stand beside themselves too: what the machine alone makes of a ratio whose value is one."""
CALL = 0.5
"""Seconds of a call, about, where an update of all runs takes no longer: the sides alternate call by call, and a machine's
speed changes from second to second."""
ROUND = 4.0
"""Seconds that each side has in a round, at the least."""


@dataclass(frozen=True)
class Config:
    """Time the training of 25 and of 125 runs. Takes half an hour on two cores; nothing else should run meanwhile."""

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
        found |= {"seconds_of_an_update": {cell.name: growth_of(cell, config.rounds) for cell in cells}}
    found |= {"devices": jax.local_device_count(), "load": watch.share()}
    conclude(found, report(found), config.json)


def growth_of(cell: Cell, rounds: int) -> dict[str, list[float]]:
    """Seconds of an update of one run on each side, round by round: the median of its calls, which alternate with the others'.

    Each round makes everything anew, in another order: where in memory things come to lie moves some cells by a tenth.
    """
    few_calls, updates = _calls_of(cell)
    found: dict[str, list[float]] = {side: [] for side in SIDES}
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
        for side in SIDES:
            found[side].append(float(np.median(paces[side])))
    say(f"{cell.name}: a run of {MANY} costs {np.median(beside(found, 'many')):.3f} times one of {FEW}")
    return found


def _calls_of(cell: Cell) -> tuple[int, dict[int, int]]:
    """In how many calls few runs make the updates of one call of many, and the updates of a run in a call of either."""
    make: partial[Turn] = partial(our_turn, "jaxser", cell, 2)
    _, _, of_two = filling(make, CALL, turns.ROWS // 2)
    updates = max(1, round(2 * of_two / MANY))
    if updates < turns.FEWEST:  # to go from run to run has its price: both go as often for as many updates
        return MANY // FEW, {FEW: updates, MANY: updates}
    return 1, {FEW: updates * MANY // FEW, MANY: updates}  # the call itself has: both make as many updates in one


def beside(of: Mapping[str, Sequence[float]], side: str) -> np.ndarray:
    """What a run of one side costs beside one of few, round by round."""
    return np.array(of[side]) / np.array(of["few"])


def report(found: dict[str, Any]) -> str:
    """Everything as Markdown."""
    header = ["cell", f"us an update, {FEW} runs", f"{MANY} runs", f"{MANY} beside {FEW}", "lowest", "highest"]
    header += [f"{FEW} beside {FEW}", "lowest", "highest"]
    rows = []
    for name, of in found["seconds_of_an_update"].items():
        medians = [f"{1e6 * np.median(of[side]):.1f}" for side in ("few", "many")]
        ratios = [beside(of, side) for side in ("many", "again")]
        rows.append([name, *medians, *(f"{f(each):.3f}" for each in ratios for f in (np.median, np.min, np.max))])
    return "\n".join([*stamp(found), "", table(header, rows)])


if __name__ == "__main__":
    run_benchmark("benchmarks.growth", Config, main)
