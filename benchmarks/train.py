"""python -m benchmarks.train: the training of Table 1's cells and of the recurrent heads, ours beside a torch user's loop.

Both train the same runs, five folds of each seed, with the same batches, and both are timed from the call to the result:
compiling, and then all updates, projected from the seconds of one. Ours is the program that `python -m jaxser.cv` runs, all
runs in one, and the same with other strategies; torch's goes through one run after the other, eager and compiled, on one
thread and on all. Frames are random, as many as a corpus's recordings have.
"""

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import optax
import torch
from jax.sharding import Mesh

from benchmarks import torch_loop
from benchmarks.cells import CLASSES, Cell, standards_of
from benchmarks.systems import ceiling
from benchmarks.timing import (
    OtherLoad,
    conclude,
    machine,
    peak_mib,
    run_benchmark,
    say,
    seconds_of,
    stamp,
    table,
)
from jaxser import devices, ensemble, folds, program, train, turns
from jaxser.heads import DROPOUT, HEADS

CORES = os.cpu_count() or 1
TORCH = {
    f"torch{' compiled' * compiled}, {n} thread{'s' * (n > 1)}": (compiled, n)
    for compiled in (False, True)
    for n in sorted({1, CORES})
}
"""torch on one core and on all: on batches this small more threads may well be slower."""

OURS = ("jaxser", "jaxser, one device", "jaxser, 5 runs at once")
RUNS = (1, 5, 25, 125)
GROWTH = (25, 125)
"""Numbers of runs whose times are set beside each other."""
GROWTH_TURN = 4.0
"""Seconds that either has in a round, longer than a turn since what is looked for is a few per cent."""
SETTLING = 3
"""Calls that are not timed: the first compiles, and then the pace is found."""
TRIAL = 4
"""Updates of a first, short turn, which compiles, and the fewest of any."""
ENDLESS = 10**12
"""Updates of a run that is only timed."""
LOOP = 5
"""Runs of torch that are timed: its loop takes one after the other, so the others take as long."""


@dataclass(frozen=True)
class Config:
    """Time the training of heads. Takes an hour on two cores; nothing else should run meanwhile."""

    cells: tuple[str, ...] = (
        "mean lld", "mean nano", "meanmax lld", "meanmax nano", "attention lld", "attention nano", "mlp lld", "mlp nano",
        "bilstm lld", "bilstm nano", "aligned lld", "aligned nano",
    )  # fmt: skip
    """Heads with their features: lld, nano or large (those of wav2vec)."""
    size: Literal["ravdess", "iemocap"] = "ravdess"
    """Whose number of utterances and whose lengths."""
    rounds: int = 5
    """How often each system has its turn."""
    turn: float = 0.5
    """Seconds that a turn should take; so many updates are timed."""
    full: str = "mean lld"
    """The cell that is trained whole, both sides, to check the projection; none: leave it out."""
    peaks: str = "mlp lld"
    """The cell whose peak memory is taken; none: leave it out."""
    json: Path | None = None
    """Write everything measured to this file as well."""
    only: str | None = None
    """`SYSTEM:RUNS`, with one cell: two turns and nothing else; this is how peak memory is taken."""


def main(config: Config) -> None:
    """The whole benchmark."""
    devices.each_core()
    cells = [Cell(*name.split(), config.size) for name in config.cells]
    if config.only:
        system, _, runs = config.only.rpartition(":")
        turn = maker_of(system, cells[0], int(runs))(2)
        turn()
        turn()
        return
    found: dict[str, Any] = {"machine": machine(), "command": " ".join(["python -m benchmarks.train", *sys.argv[1:]])}
    watch = OtherLoad()
    growths = {cell.name: growth_of(cell, config) for cell in cells}  # before torch starts threads of its own
    ceilings = ceiling("float32")
    say(", ".join(f"{name} {value:.0f} GFLOP/s" for name, value in ceilings.items()))
    rows = [row for cell in cells for row in rows_of(cell, config, max(ceilings.values()))]
    ratios = {cell.name: ratio_of(rows, cell) for cell in cells}
    found |= {"ceiling_gflops": ceilings, "rows": rows, "growth": growths, "devices": jax.local_device_count()}
    if config.full != "none":
        found["whole"] = [whole(Cell(*config.full.split(), config.size), rows, ours) for ours in (True, False)]
    if config.peaks != "none":
        cell = ("--cells", config.peaks, "--size", config.size, "--only")
        at = {f"{system}, {runs} runs": f"{system}:{runs}" for system in OURS[:1] for runs in (25, 125)}
        at["torch, 25 runs"] = f"{next(iter(TORCH))}:25"
        found["peak_mib"] = {name: peak_mib("benchmarks.train", *cell, only) for name, only in at.items()}
    found |= {
        "load": watch.share(),
        "ratios": {f"{name.replace(' ', '_')}_jax_over_torch": found["median"] for name, found in ratios.items()}
        | {
            f"{head}_jax_over_torch": min(one["median"] for name, one in ratios.items() if name.split()[0] == head)
            for head in dict.fromkeys(cell.head for cell in cells)
        },
        "ratio_spreads": ratios,
    }
    conclude(found, report(found), config.json)


def growth_of(cell: Cell, config: Config) -> dict[int, list[float]]:
    """Seconds of an update of one run among few and among many, round by round.

    Both go as the commands do, in calls of some seconds; where many runs would take longer than that, both in calls of as many
    updates as they make in the time. They alternate call by call, so that a machine whose speed drifts drifts for both. Each
    round makes everything anew: where in memory things come to lie moves some cells by a tenth.
    """
    few, many = GROWTH
    _, _, updates = filling(partial(our_turn, "jaxser", cell, many), turns.SECONDS, turns.FEWEST)
    updates = updates if updates < turns.FEWEST else 0
    found: dict[int, list[float]] = {runs: [] for runs in GROWTH}
    for _ in range(config.rounds):
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


def rows_of(cell: Cell, config: Config, most: float) -> list[dict[str, Any]]:
    """A line for each system and number of runs: all take turns, round after round."""
    made = {("jaxser", runs): maker_of("jaxser", cell, runs) for runs in RUNS}
    made |= {(system, 25): maker_of(system, cell, 25) for system in OURS[1:]}
    made |= {(system, LOOP): maker_of(system, cell, LOOP) for system in TORCH}
    turns_of, firsts = {}, {}
    for (system, runs), make in made.items():
        try:
            firsts[system, runs], turns_of[system, runs], _ = filling(make, config.turn, cell.updates // 2)
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
        compiling = max(0.0, firsts[system, runs] - TRIAL * runs * median)
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
        say(f"{cell.name}, {system}, {runs} runs: {1e6 * median:.0f} us an update, {compiling:.1f} s to compile")
    return rows


Turn = Callable[[], int]
"""Makes some updates, returns when they are done, and says how many there were in all runs."""


def pace_of(turn: Turn, calls: int = 1) -> float:
    """Seconds of an update of one run."""
    began = time.perf_counter()
    updates = sum(turn() for _ in range(calls))
    return (time.perf_counter() - began) / updates


def filling(make: Callable[[int], Turn], seconds: float, most: int) -> tuple[float, Turn, int]:
    """The seconds of a first call of TRIAL updates, which compiles, a turn that takes about `seconds`, compiled too, and its
    updates of a run."""
    updates, turn = TRIAL, make(TRIAL)
    first = seconds_of(turn)
    for _ in range(2):  # twice, for of few updates the call itself takes most of the time
        updates = int(np.clip(seconds / min(seconds_of(turn) for _ in range(2)) * updates, TRIAL, most))
        turn = make(updates)
        turn()
    return first, turn, updates


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


def our_turn(system: str, cell: Cell, count: int, updates: int = 0) -> Turn:
    """A call of the program that `ensemble.train_runs` makes of the runs, with what comes between it and the next: of so many
    updates of a run, or, where none are given, of as many as the commands would take."""
    inputs, labels = cell.corpus()
    runs = cell.runs(count, cell.updates)
    model, tx = HEADS[cell.head].module(CLASSES, DROPOUT), optax.adam(train.LEARNING_RATE)
    rooms = program.rooms_of(inputs[0], runs, train.BATCH_SIZE) if hasattr(model, "room") else ()
    of_all = program.Program(model, tx, inputs, labels, train.BATCH_SIZE, mesh_of(system, count), rooms)
    standards = jax.tree.map(lambda *leaves: np.stack(leaves), *standards_of(inputs, runs))
    size, parallel = of_all.mesh.size, parallel_of(system, count)
    course = turns.course_of([cell.updates] * count, size, turns.places_for(count, size, parallel), parallel, updates)
    course = replace(course, look=updates or course.look)
    runs = [replace(run, updates=ENDLESS) for run in runs]
    resting, none = program.started(of_all, runs), np.zeros(count, np.int64)
    seconds = np.inf if updates else turns.SECONDS
    calls = program.looks(of_all, runs, standards, course, parallel, resting, none, seconds)
    return lambda: sum(map(len, next(calls).losses.values()))


def mesh_of(system: str, count: int) -> Mesh:
    """The devices that a system trains so many runs on."""
    return Mesh(np.array(jax.local_devices()[: 1 if system == "jaxser, one device" else max(2, count)]), ("runs",))


def parallel_of(system: str, count: int) -> int:
    """How many runs of so many it trains at once on each."""
    most = -(-count // mesh_of(system, count).size)
    if jax.default_backend() != "cpu" and system == "jaxser":
        return most
    return min(most, 5 if system == "jaxser, 5 runs at once" else 1)


def whole(cell: Cell, rows: list[dict[str, Any]], ours: bool) -> dict[str, Any]:
    """One cell, 25 runs trained from the first update to the last: what the projection promised, and what it took."""
    inputs, labels = cell.corpus()
    runs = cell.runs(25, cell.updates)
    standards = standards_of(inputs, runs)
    here = [row for row in rows if row["name"] == cell.name and row["runs"] == 25]
    if ours:
        model, tx = HEADS[cell.head].module(CLASSES, DROPOUT), optax.adam(train.LEARNING_RATE)
        system, work = "jaxser", lambda: ensemble.train_runs(model, tx, inputs, labels, runs, standards)
    else:
        system = best_of_torch(rows, cell)["system"]
        compiled, threads = TORCH[system]

        def work() -> None:
            torch.set_num_threads(threads)
            torch._dynamo.reset()
            learners = torch_loop.learners(cell.twin, inputs, labels, standards, compiled)
            for learner, run in zip(learners, runs, strict=True):
                plan = folds.batches(run.train, train.BATCH_SIZE, 0, run.updates, run.seed, run.fold, run.train_size)
                torch_loop.advance(learner, plan)

    promised = next((row["projected_seconds"] for row in here if row["system"] == system), None)
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


def growth(of: Mapping[int, Sequence[float]]) -> np.ndarray:
    """What a run of many costs beside one of few, round by round."""
    few, many = (np.array(of[runs]) for runs in GROWTH)
    return many / few


def report(found: dict[str, Any]) -> str:
    """Everything as Markdown."""
    header = ["cell", "system", "runs", "us an update", "fastest", "slowest", "of ceiling", "compile s", "all of it, s"]
    rows = [
        [
            row["name"],
            row["system"],
            str(row["runs"]),
            *(f"{1e6 * row[name]:.1f}" for name in ("seconds_per_step", "low", "high")),
            f"{row['share']:.0%}",
            f"{row['compile_seconds']:.1f}",
            f"{row['projected_seconds']:.0f}",
        ]
        for row in found["rows"]
    ]
    ceilings = ", ".join(f"{name} {value:.0f}" for name, value in found["ceiling_gflops"].items())
    lines = [*stamp(found), f"ceiling, GFLOP/s: {ceilings}", "", table(header, rows), ""]
    for name, v in found["ratio_spreads"].items():
        lines.append(f"- {name}: {v['median']:.2f} ({v['low']:.2f} to {v['high']:.2f}) times {v['beside']}")
    for name, of in found["growth"].items():
        each = growth(of)
        lines.append(
            f"- {name}, a run of {GROWTH[1]} beside one of {GROWTH[0]}: {np.median(each):.3f} ({each.min():.3f} to "
            f"{each.max():.3f})"
        )
    for one in found.get("whole", ()):
        lines.append(
            f"- {one['name']}, {one['system']}, whole: {one['seconds']:.1f} s, projected {one['projected_seconds']:.1f}"
        )
    lines += [f"- peak MiB, {name}: {value:.0f}" for name, value in found.get("peak_mib", {}).items()]
    return "\n".join(lines)


if __name__ == "__main__":
    run_benchmark("benchmarks.train", Config, main)
