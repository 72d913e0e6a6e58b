"""python -m benchmarks.whole: many runs beside one, each time from the call to the result, with nothing projected."""

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import optax

from benchmarks.calls import OURS, TRIAL
from benchmarks.cells import CELLS, CLASSES, Cell, standards_of
from benchmarks.timing import OtherLoad, conclude, keep, machine, run_benchmark, say, seconds_of, stamp, table
from jaxser import devices, ensemble, train
from jaxser.heads import DROPOUT, HEADS


@dataclass(frozen=True)
class Config:
    """Time whole trainings, each once. Takes some ten minutes on a GPU and hours on two cores; nothing else should run then.

    Ctrl-C ends it with what is done, which --json has after each training.
    """

    cells: tuple[str, ...] = CELLS
    """Heads with their features: lld, nano or large (those of wav2vec)."""
    size: Literal["ravdess", "iemocap"] = "ravdess"
    """Whose number of utterances and whose lengths."""
    runs: tuple[int, ...] = (1, 125)
    """Numbers of runs in one program."""
    json: Path | None = None
    """Write everything measured to this file as well."""


def main(config: Config) -> None:
    """The whole benchmark."""
    devices.each_core()
    found: dict[str, Any] = {"machine": machine(), "command": " ".join(["python -m benchmarks.whole", *sys.argv[1:]])}
    found |= {"devices": jax.local_device_count(), "load": None, "rows": [], "ratios": {}}
    watch, cells = OtherLoad(), [Cell(*name.split(), config.size) for name in config.cells]
    with suppress(KeyboardInterrupt):  # what is measured by then is told
        call_of(cells[0], 3, TRIAL)()  # what jax compiles once for all calls is in none of them
        for cell in cells:
            for count in config.runs:
                seconds = seconds_of(call_of(cell, count, cell.updates))  # once: what it compiles counts
                say(f"{cell.name}, {count} run{'s' * (count > 1)}: {seconds:.1f} s")
                found["rows"].append({"name": cell.name, "system": OURS[0], "runs": count, "seconds": seconds})
                found |= {"ratios": ratios_of(found["rows"]), "load": watch.share()}
                keep(found, config.json)
    conclude(found, report(found), config.json)


def call_of(cell: Cell, count: int, updates: int) -> Callable[[], object]:
    """What a command calls to train so many runs and predict with them."""
    inputs, labels = cell.corpus()
    runs = cell.runs(count, updates)
    standards = standards_of(inputs, runs)
    model, tx = HEADS[cell.head].module(CLASSES, DROPOUT), optax.adam(train.LEARNING_RATE)
    return partial(ensemble.train_runs, model, tx, inputs, labels, runs, standards)


def ratios_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """How many times as long as the fewest runs of a cell the others take."""
    found = {}
    for row in rows:
        few = min((other for other in rows if other["name"] == row["name"]), key=lambda other: other["runs"])
        if few is not row:
            found[f"{row['name']}, {row['runs']} runs beside {few['runs']}"] = row["seconds"] / few["seconds"]
    return found


def report(found: Mapping[str, Any]) -> str:
    """Everything as Markdown."""
    rows = [[row["name"], row["system"], str(row["runs"]), f"{row['seconds']:.1f}"] for row in found["rows"]]
    ratios = [f"- {name}: {value:.2f} times as long" for name, value in found["ratios"].items()]
    return "\n".join([*stamp(found), "", table(["cell", "system", "runs", "seconds"], rows), "", *ratios]).rstrip()


if __name__ == "__main__":
    run_benchmark("benchmarks.whole", Config, main)
