"""python -m benchmarks.pretrain: updates of self-supervised training a second, ours beside fairseq's own code.

One update is everything that happens to a batch that has been read: forward, negatives, loss, gradients, clipping, Adam. Both
sides have the network, the objective and the batch of a recipe; fairseq's has its own model and criterion, unmodified, and
torch's Adam.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import torch

from benchmarks import torch_twins
from benchmarks.systems import Dtype, side_by_side
from benchmarks.timing import (
    OtherLoad,
    Timing,
    conclude,
    machine,
    peak_mib,
    ratio,
    run_benchmark,
    say,
    stamp,
    table,
    take_turns,
)
from convert.wav2vec import port_wav2vec
from jaxser import audio
from jaxser.crops import Read
from jaxser.recipes import RECIPES, Recipe
from jaxser.selfsupervised import make_learner

SYSTEMS = ("jaxser", "fairseq", "fairseq compiled")


@dataclass(frozen=True)
class Config:
    """Time updates of pretraining. Takes a few minutes on two cores; nothing else should run meanwhile."""

    recipe: Literal["nano", "base", "large"] = "nano"
    batch_seconds: float | None = None
    """In place of the recipe's: what fits one device."""
    rounds: int = 7
    """How often each system has its turn."""
    updates: int = 5
    """Updates a turn."""
    dtype: Dtype = "float32"
    """bfloat16: on a GPU, for both sides (autocast on fairseq's)."""
    json: Path | None = None
    """Write everything measured to this file as well."""
    only: str | None = None
    """One system, two turns and nothing else; this is how peak memory is taken."""


def main(config: Config) -> None:
    """The whole benchmark."""
    side_by_side()
    recipe = RECIPES[config.recipe]
    if config.batch_seconds:
        recipe = replace(recipe, batch_seconds=config.batch_seconds)
    if config.only:
        call = update_call(config.only, recipe, config)
        call()
        call()
        return
    found: dict[str, Any] = {"machine": machine(), "command": " ".join(["python -m benchmarks.pretrain", *sys.argv[1:]])}
    watch = OtherLoad()
    calls = {name: update_call(name, recipe, config) for name in SYSTEMS}
    say(f"{len(calls)} systems, {config.rounds} rounds of {config.updates} updates on {recipe.batch_seconds:g} s of sound")
    timings = take_turns(calls, config.rounds)
    load = watch.share()
    ratios = {f"jax_over_{name.replace(' ', '_')}": ratio(timings[name], timings["jaxser"]) for name in SYSTEMS[1:]}
    found |= {
        "load": load,
        "recipe": config.recipe,
        "rows": [row_of(name, timing, recipe, config) for name, timing in timings.items()],
        "ratios": {name: value["median"] for name, value in ratios.items()},
        "ratio_spreads": ratios,
    }
    conclude(found, report(found), config.json)


def update_call(system: str, recipe: Recipe, config: Config) -> Callable[[], Any]:
    """A function that makes `config.updates` updates of one system, each on the same batch, and returns when they are done."""
    samples = round(recipe.crop_seconds * audio.SAMPLE_RATE)
    rows = rows_of(recipe)
    waveforms = np.random.default_rng(0).normal(0, 0.1, (rows, samples)).astype(np.float32)
    model = twin_of(recipe)
    if system == "jaxser":
        learner = make_learner(recipe, 0, config.dtype)
        tensors = {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}
        state = learner.start(port_wav2vec(tensors, recipe.architecture))
        read = Read(waveforms, np.full(rows, samples, np.int32), waveforms.size)

        def ours() -> None:
            nonlocal state
            for _ in range(config.updates):
                state, metrics = learner.update(state, read)
            jax.block_until_ready((state, metrics))

        return ours
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, source = model.to(device).train(), torch.from_numpy(waveforms).to(device)
    criterion = torch_twins.fairseq_criterion()(None, infonce=recipe.objective.infonce)
    optimiser = torch.optim.Adam(model.parameters(), recipe.learning_rate)
    # Not with dynamic=False: fairseq moves another number of its negatives in each update, which would be compiled each time.
    forward = torch.compile(model) if system.endswith("compiled") else model
    # The criterion asks the model for its logits and targets; compiled or not, they are those of the model itself.
    asked = Asked(forward, model)
    sample = {"net_input": {"source": source}, "id": torch.arange(rows)}

    def theirs() -> None:
        for _ in range(config.updates):
            optimiser.zero_grad()
            with torch.autocast(device, torch.bfloat16, enabled=config.dtype == "bfloat16"):
                loss, size, _ = criterion(asked, sample)
            (loss / size).backward()
            if recipe.clip_norm:
                torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
            optimiser.step()
        if device == "cuda":
            torch.cuda.synchronize()

    return theirs


@dataclass(frozen=True)
class Asked:
    """A model as the criterion calls it: `forward`, perhaps compiled, and the model's own way of naming what comes out."""

    forward: Callable[..., Any]
    model: torch.nn.Module

    def __call__(self, **inputs: Any) -> Any:
        return self.forward(**inputs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)


def rows_of(recipe: Recipe) -> int:
    """Crops a batch."""
    return max(1, round(recipe.batch_seconds / recipe.crop_seconds))


def twin_of(recipe: Recipe) -> torch.nn.Module:
    """fairseq's model with the network and the objective of a recipe."""
    network, objective = recipe.architecture.to_json(), recipe.objective
    layers = {name: str([tuple(layer) for layer in value]) for name, value in network.items() if name.endswith("_layers")}
    model, _ = torch_twins.fairseq_model(**network | vars(objective) | layers)
    return model


def row_of(name: str, timing: Timing, recipe: Recipe, config: Config) -> dict[str, Any]:
    """One line of the table and of the JSON."""
    rows = rows_of(recipe)
    speed = timing.per_second(config.updates * rows * recipe.crop_seconds)
    flags = ("--recipe", config.recipe, "--dtype", config.dtype, "--batch-seconds", str(recipe.batch_seconds))
    on_cpu = jax.default_backend() == "cpu"  # elsewhere the process's own memory says little
    return {
        "name": f"update of {config.recipe}",
        "system": name,
        "dtype": config.dtype,
        "batch": rows,
        "audio_seconds_per_second": speed["median"],
        "low": speed["low"],
        "high": speed["high"],
        "seconds_per_step": timing.median / config.updates,
        "compile_seconds": timing.compiling,
        "peak_mib": peak_mib("benchmarks.pretrain", "--only", name, *flags) if on_cpu else None,
    }


def report(found: dict[str, Any]) -> str:
    """Everything as Markdown."""
    header = ["what", "system", "batch", "s an update", "audio h an hour", "slowest", "fastest", "compile s", "peak MiB"]
    rows = [
        [
            row["name"],
            row["system"],
            str(row["batch"]),
            f"{row['seconds_per_step']:.3f}",
            *(f"{row[name]:.1f}" for name in ("audio_seconds_per_second", "low", "high")),
            f"{row['compile_seconds']:.1f}",
            "" if row["peak_mib"] is None else f"{row['peak_mib']:.0f}",
        ]
        for row in found["rows"]
    ]
    ratios = [f"- {name}: {v['median']:.2f} ({v['low']:.2f} to {v['high']:.2f})" for name, v in found["ratio_spreads"].items()]
    return "\n".join([*stamp(found), "", table(header, rows), "", *ratios])


if __name__ == "__main__":
    run_benchmark("benchmarks.pretrain", Config, main)
