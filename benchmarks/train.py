"""python -m benchmarks.train: the training of Table 1's cells and of the recurrent heads, ours beside a torch user's loop.

Both train the same runs, five folds of each seed, with the same batches, and both are timed from the call to the result:
compiling, and then all updates, projected from the seconds of one. Ours is the program that `python -m jaxser.cv` runs, all
runs in one, and the same with other strategies; torch's goes through one run after the other, eager and compiled, on one
thread and on all. Frames are random, as many as a corpus's recordings have.
"""

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import torch

from benchmarks import torch_loop
from benchmarks.calls import OURS, TRIAL, Turn, filling, our_turn, pace_of
from benchmarks.cells import CELLS, Cell, standards_of
from benchmarks.systems import ceiling, side_by_side
from benchmarks.timing import (
    OtherLoad,
    conclude,
    keep,
    machine,
    peak_mib,
    run_benchmark,
    say,
    seconds_of,
    stamp,
    table,
)
from benchmarks.whole import call_of
from jaxser import devices, folds, train

CORES = 1 if torch.cuda.is_available() else os.cpu_count() or 1
TORCH = {
    f"torch{' compiled' * compiled}, {n} thread{'s' * (n > 1)}": (compiled, n)
    for compiled in (False, True)
    for n in sorted({1, CORES})
}
"""torch on one core and on all: on batches this small more threads may well be slower. On a GPU they are all the same."""

RUNS = (1, 5, 25, 125)
LOOP = 5
"""Runs of torch that are timed: its loop takes one after the other, so the others take as long."""


@dataclass(frozen=True)
class Config:
    """Time the training of heads. Takes some forty minutes on two cores; nothing else should run meanwhile.

    Ctrl-C ends it with the cells that are done, which --json has after each.
    """

    cells: tuple[str, ...] = CELLS
    """Heads with their features: lld, nano or large (those of wav2vec)."""
    size: Literal["ravdess", "iemocap"] = "ravdess"
    """Whose number of utterances and whose lengths."""
    rounds: int = 5
    """How often each system has its turn."""
    turn: float = 0.5
    """Seconds that a turn should take; so many updates are timed."""
    updates: int = 0
    """Updates of a run in a turn, in place of those that take `turn` seconds: each system then compiles once, not thrice."""
    runs: tuple[int, ...] = RUNS
    """Numbers of runs in one program of ours."""
    systems: tuple[str, ...] = (*OURS, *TORCH)
    """Which have their turn; of ours all but the first with 25 runs."""
    full: str | None = None
    """The cell that is trained whole, both sides, to check the projection, where both are timed; none: leave it out. Default:
    mean lld on a CPU; elsewhere none, for torch's loop takes half an hour."""
    peaks: str | None = None
    """The cell whose peak memory is taken; none: leave it out. Default: mlp lld on a CPU; elsewhere none, for the process's own
    memory says little."""
    json: Path | None = None
    """Write everything measured to this file as well."""
    only: str | None = None
    """`SYSTEM:RUNS`, with one cell: two turns and nothing else; this is how peak memory is taken."""


def main(config: Config) -> None:
    """The whole benchmark."""
    side_by_side(tf32=True)
    devices.each_core()
    cells = [Cell(*name.split(), config.size) for name in config.cells]
    if config.only:
        system, _, runs = config.only.rpartition(":")
        turn = maker_of(system, cells[0], int(runs))(2)
        turn()
        turn()
        return
    found: dict[str, Any] = {"machine": machine(), "command": " ".join(["python -m benchmarks.train", *sys.argv[1:]])}
    found |= {"devices": jax.local_device_count(), "load": None}
    watch = OtherLoad()
    ceilings = ceiling("float32", jax.lax.Precision.DEFAULT)  # as training has its products
    say(", ".join(f"{name} {value:.0f} GFLOP/s" for name, value in ceilings.items()))
    found |= {"ceiling_gflops": ceilings, "rows": [], **compared([], [], config)}
    with suppress(KeyboardInterrupt):  # what is measured by then is told
        for part in beside_torch(cells, config, max(ceilings.values())):
            found |= {**part, "load": watch.share()}
            keep(found, config.json)
    conclude(found, report(found), config.json)


def beside_torch(cells: Sequence[Cell], config: Config, most: float) -> Iterator[dict[str, Any]]:
    """What is known after each cell: the table and the ratios; at last the cell that is trained whole, and the peaks."""
    rows: list[dict[str, Any]] = []
    for number, cell in enumerate(cells, 1):
        some = rows_of(cell, config, most)
        say(table_of(some))
        rows += some
        yield {"rows": rows, **compared(rows, cells[:number], config)}
    on_cpu = jax.default_backend() == "cpu"
    full, peaks = (config.full or "mean lld", config.peaks or "mlp lld") if on_cpu else (config.full, config.peaks)
    if any(cell.name == full for cell in cells) and beside_each_other(config):  # what is to be checked are its projections
        yield {"whole": [whole(Cell(*full.split(), config.size), rows, ours) for ours in (True, False)]}
    if peaks not in (None, "none"):
        cell = ("--cells", peaks, "--size", config.size, "--only")
        at = {f"{system}, {runs} runs": f"{system}:{runs}" for system in OURS[:1] for runs in (25, 125)}
        at["torch, 25 runs"] = f"{next(iter(TORCH))}:25"
        yield {"peak_mib": {name: peak_mib("benchmarks.train", *cell, only) for name, only in at.items()}}


def beside_each_other(config: Config) -> bool:
    """Whether both sides come to the same result."""
    return 25 in config.runs and OURS[0] in config.systems and bool(set(TORCH) & set(config.systems))


def compared(rows: list[dict[str, Any]], cells: Sequence[Cell], config: Config) -> dict[str, Any]:
    """What the rows say: ours beside torch, and many runs beside few."""
    ratios = {cell.name: ratio_of(rows, cell) for cell in cells if beside_each_other(config)}
    heads = dict.fromkeys(cell.head for cell in cells if cell.name in ratios)
    least = {head: min(one["median"] for name, one in ratios.items() if name.split()[0] == head) for head in heads}
    medians = {name.replace(" ", "_"): one["median"] for name, one in ratios.items()} | least
    return {
        "ratios": {f"{name}_jax_over_torch": median for name, median in medians.items()},
        "ratio_spreads": ratios,
        "many_beside_one": {
            cell.name: many_beside_one(rows, cell) for cell in cells if OURS[0] in config.systems and len(config.runs) > 1
        },
    }


def rows_of(cell: Cell, config: Config, most: float) -> list[dict[str, Any]]:
    """A line for each system and number of runs: all take turns, round after round."""
    numbers = {system: [LOOP] if system in TORCH else config.runs if system == OURS[0] else [25] for system in config.systems}
    made = {(system, runs): maker_of(system, cell, runs) for system in config.systems for runs in numbers[system]}
    turns_of, firsts = {}, {}
    for (system, runs), make in made.items():
        try:
            if config.updates:
                turns_of[system, runs] = make(config.updates)
                firsts[system, runs] = config.updates, seconds_of(turns_of[system, runs])
            else:
                first, turns_of[system, runs], _ = filling(make, config.turn, cell.updates // 2)
                firsts[system, runs] = TRIAL, first
        except Exception as error:  # torch.compile may fail in ways of its own: then it has no line
            if "compiled" not in system:
                raise
            say(f"{cell.name}: {system} left out: {str(error).splitlines()[0]}")
    rounds: dict[Any, list[float]] = {key: [] for key in turns_of}
    for _ in range(config.rounds):
        for (system, runs), turn in turns_of.items():
            turn()  # what ran before still has the caches, and threads that wait for more
            rounds[system, runs].append(pace_of(turn))
    gflop, rows = cell.gflop(), []
    for (system, runs), every in rounds.items():
        median = float(np.median(every))
        updates, first = firsts[system, runs]
        compiling = max(0.0, first - updates * runs * median)
        all_runs = runs if system in OURS else 25
        rows.append(
            {
                "name": cell.name,
                "system": system,
                "dtype": "float32",
                "batch": train.BATCH_SIZE,
                "runs": all_runs,
                "seconds_per_step": median,
                "low": min(every),
                "high": max(every),
                "rounds": every,
                "compile_seconds": compiling,
                "share": gflop / median / most,
                "projected_seconds": compiling + all_runs * cell.updates * median,
            }
        )
    return rows


def maker_of(system: str, cell: Cell, count: int) -> Callable[[int], Turn]:
    """Updates of a run in a turn -> that turn, with one system."""
    if system in OURS:
        return partial(our_turn, system, cell, count)
    inputs, labels = cell.corpus()
    runs = cell.runs(count, cell.updates)
    compiled, threads = TORCH[system]
    torch._dynamo.reset()
    learners = torch_loop.learners(cell.twin, inputs, labels, standards_of(inputs, runs), compiled)

    def turn_of(updates: int) -> Turn:
        start = 0

        def turn() -> int:
            nonlocal start
            torch.set_num_threads(threads)
            for learner, r in zip(learners, runs, strict=True):
                some = (start, start + updates)
                torch_loop.advance(learner, folds.batches(r.train, train.BATCH_SIZE, *some, r.seed, r.fold, r.train_size))
            start += updates
            return updates * count

        return turn

    return turn_of


def whole(cell: Cell, rows: list[dict[str, Any]], ours: bool) -> dict[str, Any]:
    """One cell, 25 runs trained from the first update to the last: what the projection promised, and what it took."""
    if ours:
        system, work = OURS[0], call_of(cell, 25, cell.updates)
    else:
        inputs, labels = cell.corpus()
        runs = cell.runs(25, cell.updates)
        standards = standards_of(inputs, runs)
        system = best_of_torch(rows, cell)["system"]
        compiled, threads = TORCH[system]

        def work() -> None:
            torch.set_num_threads(threads)
            torch._dynamo.reset()
            learners = torch_loop.learners(cell.twin, inputs, labels, standards, compiled)
            for learner, run in zip(learners, runs, strict=True):
                plan = folds.batches(run.train, train.BATCH_SIZE, 0, run.updates, run.seed, run.fold, run.train_size)
                torch_loop.advance(learner, plan)

    here = (row for row in rows if (row["name"], row["runs"]) == (cell.name, 25))
    promised = next(row["projected_seconds"] for row in here if row["system"] == system)
    return {"name": cell.name, "system": system, "projected_seconds": promised, "seconds": seconds_of(work)}


def best_of_torch(rows: list[dict[str, Any]], cell: Cell) -> dict[str, Any]:
    """torch's fastest way to a cell's result."""
    return min(
        (row for row in rows if row["name"] == cell.name and row["system"] in TORCH), key=lambda row: row["projected_seconds"]
    )


def ratio_of(rows: list[dict[str, Any]], cell: Cell) -> dict[str, Any]:
    """How many times as fast as torch at its best ours comes to the result of 25 runs, round by round."""
    ours = next(r for r in rows if (r["name"], r["system"], r["runs"]) == (cell.name, "jaxser", 25))
    theirs = best_of_torch(rows, cell)

    def seconds(row: Mapping[str, Any]) -> np.ndarray:
        return row["compile_seconds"] + 25 * cell.updates * np.array(row["rounds"])

    each = seconds(theirs) / seconds(ours)
    found = {"median": float(np.median(each)), "low": float(each.min()), "high": float(each.max())}
    return found | {"beside": theirs["system"]}


def many_beside_one(rows: list[dict[str, Any]], cell: Cell) -> dict[str, float]:
    """How many times as long as the fewest runs of ours the most take: to the result, and an update of all of them."""
    ours = [row for row in rows if row["name"] == cell.name and row["system"] == OURS[0]]
    one, *_, many = sorted(ours, key=lambda row: row["runs"])
    return {
        "of": one["runs"],
        "runs": many["runs"],
        "result": many["projected_seconds"] / one["projected_seconds"],
        "update": many["seconds_per_step"] * many["runs"] / (one["seconds_per_step"] * one["runs"]),
    }


def table_of(rows: Sequence[Mapping[str, Any]]) -> str:
    """Cells, systems and numbers of runs as Markdown."""
    header = ["cell", "system", "runs", "us an update", "fastest", "slowest", "of ceiling", "compile s", "all of it, s"]
    lines = [
        [
            row["name"],
            row["system"],
            str(row["runs"]),
            *(f"{1e6 * row[name]:.1f}" for name in ("seconds_per_step", "low", "high")),
            f"{row['share']:.0%}",
            f"{row['compile_seconds']:.1f}",
            f"{row['projected_seconds']:.0f}",
        ]
        for row in rows
    ]
    return table(header, lines)


def report(found: dict[str, Any]) -> str:
    """Everything as Markdown."""
    ceilings = ", ".join(f"{name} {value:.0f}" for name, value in found["ceiling_gflops"].items())
    lines = [*stamp(found), f"ceiling, GFLOP/s: {ceilings}", "", table_of(found["rows"]), ""]
    for name, v in found["ratio_spreads"].items():
        lines.append(f"- {name}: {v['median']:.2f} ({v['low']:.2f} to {v['high']:.2f}) times {v['beside']}")
    for name, v in found["many_beside_one"].items():
        took = f"{v['result']:.2f} times as long to the result, {v['update']:.2f} times an update"
        lines.append(f"- {name}, {v['runs']} runs beside {v['of']}: {took}")
    for one in found.get("whole", ()):
        lines.append(
            f"- {one['name']}, {one['system']}, whole: {one['seconds']:.1f} s, projected {one['projected_seconds']:.1f}"
        )
    lines += [f"- peak MiB, {name}: {value:.0f}" for name, value in found.get("peak_mib", {}).items()]
    return "\n".join(lines)


if __name__ == "__main__":
    run_benchmark("benchmarks.train", Config, main)
