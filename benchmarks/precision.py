"""python -m benchmarks.precision: what features in bfloat16 change of a score, on the same utterances, folds and seeds.

On a CPU, where `--precision bfloat16` is refused for being slow, the network is computed as accelerators compute it: plain
convolutions of rounded numbers, norms in float32. Other orders of sums aside, these are then an accelerator's features.
"""

import dataclasses
import tempfile
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from benchmarks.timing import conclude, machine, run_benchmark, say, stamp, table
from jaxser import compare, cv, devices, extract, extract_wav2vec, wav2vec
from jaxser.command import command_line
from jaxser.extractor import Extractor
from jaxser.network import Wav2Vec
from jaxser.report import percent, points
from jaxser.results import read_finished

PLACES = ("root", "json")
"""Flags that say where things lie on one machine, which is of no use on another."""


@dataclass(frozen=True)
class Config:
    """Score heads on float32 and on bfloat16 features of a corpus. Some ten minutes for RAVDESS on two cores."""

    corpus: Literal["synthetic", "iemocap", "ravdess", "emodb", "csv"] = "synthetic"
    root: Path | None = None
    classes: str | None = None
    weights: str = "nano"
    heads: tuple[str, ...] = ("mean", "meanmax", "attention", "mlp")
    seeds: int = 5
    updates: int | None = None
    """Length of training. Default: each head's own."""
    json: Path | None = None
    """Write everything found to this file as well."""


def main(config: Config) -> None:
    """The whole benchmark."""
    found: dict[str, Any] = {"machine": machine(), "command": command_line("benchmarks.precision", config, PLACES)}
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        devices.prepare(home)
        flags = {"corpus": config.corpus, "root": config.root, "classes": config.classes}
        flags |= {"weights": config.weights, "cache": home}
        both = {precision: extract.Config(**flags, precision=precision) for precision in ("float32", "bfloat16")}
        corpus = extract.open_corpus(both["float32"])
        frames = {}
        for precision, one in both.items():
            say(f"features in {precision}")
            corpus, features = extract.extract(corpus, extractor_of(one), home)
            frames[precision] = features.frames(corpus.utterances)
        found["error"] = error_of(*(np.asarray(some.x) for some in frames.values()))
        found["rows"] = []
        for head in config.heads:
            runs = []
            for precision in both:
                more = {"head": head, "seeds": config.seeds, "updates": config.updates, "out": home / f"{head}-{precision}"}
                with redirect_stdout(StringIO()):  # the store has all of it: no encoder is made
                    cv.main(cv.Config(**flags, precision=precision, **more))
                runs.append(read_finished(more["out"]))
            found["rows"].append(row_of(head, compare.compared(*runs), *runs))
            say(report_row(found["rows"][-1]))
    found["load"] = None  # there are no times in it
    conclude(found, report(found), config.json)


def extractor_of(flags: extract.Config) -> Extractor:
    """The command's own; of rounded features on a CPU with an encoder that it would refuse to make."""
    extractor = extract.sound_extractor(flags)
    if flags.precision == "float32" or jax.default_backend() != "cpu":
        return extractor
    load = partial(rounded_encoder, flags.weights)
    compute = partial(extract_wav2vec.compute, settings=extractor.settings, load=load)
    return dataclasses.replace(extractor, compute=compute)


def rounded_encoder(weights: str) -> wav2vec.Encoder:
    """What `wav2vec.load(weights, "bfloat16")` gives on an accelerator."""
    exact = wav2vec.load(weights)
    _, params, _ = wav2vec.load_params(weights)
    params.pop(wav2vec.PREDICTIONS, None)
    mesh = Mesh(np.array(devices.for_batches()), ("batch",))
    model = Wav2Vec(exact.config, jnp.bfloat16)
    return dataclasses.replace(exact, params=devices.on_all(params, mesh), precision="bfloat16", model=model, mesh=mesh)


def error_of(exact: np.ndarray, rounded: np.ndarray) -> float:
    """The root mean square of the difference of frames beside that of the frames; padding is zero in both."""
    return float(np.sqrt(np.square(rounded - exact, dtype=np.float64).sum() / np.square(exact, dtype=np.float64).sum()))


def row_of(head: str, paired: compare.Comparison, *runs: Any) -> dict[str, Any]:
    """One line of the table and of the JSON; scores and differences are fractions."""
    ua = paired.ua
    found = {"head": head, "ua": [run.summary["ua_mean"] for run in runs], "ua_std": [run.summary["ua_std"] for run in runs]}
    return found | {"difference": ua.value, "low": ua.low, "high": ua.high, "utterances": paired.utterances}


def report_row(row: dict[str, Any]) -> str:
    """One line for people."""
    return " | ".join(cells_of(row))


def cells_of(row: dict[str, Any]) -> list[str]:
    """The row of the table."""
    interval = "" if row["low"] is None else f"{points(row['low'])} to {points(row['high'])}"
    return [row["head"], *map(percent, row["ua"]), points(row["difference"]), interval]


def report(found: dict[str, Any]) -> str:
    """Everything as Markdown."""
    header = ["head", "UA float32", "UA bfloat16", "difference, points", "95 % interval, paired over speakers"]
    error = f"frames differ by {found['error']:.2%} (root mean square)"
    return "\n".join([*stamp(found), "", table(header, [cells_of(row) for row in found["rows"]]), "", error])


if __name__ == "__main__":
    run_benchmark("benchmarks.precision", Config, main)
