"""Calls of the program of many runs, as something that can be timed."""

import time
from collections.abc import Callable
from dataclasses import replace

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from benchmarks.cells import CLASSES, Cell, standards_of
from benchmarks.timing import seconds_of
from jaxser import program, train, turns
from jaxser.heads import DROPOUT, HEADS
from jaxser.rooms import rooms_of

OURS = ("jaxser", "jaxser, one device", "jaxser, 5 runs at once")
TRIAL = 4
"""Updates of a first, short turn, which compiles, and the fewest of any."""
ENDLESS = 10**12
"""Updates of a run that is only timed."""

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


def our_turn(system: str, cell: Cell, count: int, updates: int) -> Turn:
    """A call of the program that `ensemble.train_runs` makes of the runs, of so many updates of each, with what comes between
    it and the next."""
    inputs, labels = cell.corpus()
    runs = cell.runs(count, cell.updates)
    model, tx = HEADS[cell.head].module(CLASSES, DROPOUT), optax.adam(train.LEARNING_RATE)
    rooms = rooms_of(inputs[0], runs, train.BATCH_SIZE) if hasattr(model, "room") else ()
    of_all = program.Program(model, tx, inputs, labels, train.BATCH_SIZE, mesh_of(system, count), rooms)
    standards = jax.tree.map(lambda *leaves: np.stack(leaves), *standards_of(inputs, runs))
    size, parallel = of_all.mesh.size, parallel_of(system, count)
    course = turns.course_of([cell.updates] * count, size, turns.places_for(count, size, parallel), parallel, updates)
    course = replace(course, look=updates)
    runs = [replace(run, updates=ENDLESS) for run in runs]
    resting, none = program.started(of_all, runs), np.zeros(count, np.int64)
    calls = program.looks(of_all, runs, standards, course, parallel, resting, none, np.inf)
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
