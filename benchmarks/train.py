"""python -m benchmarks.train: updates of training a second, ours beside the ordinary loop of a torch user.

Both train the same runs, five folds of each seed, with the same batches. Ours is the program that `python -m jaxser.cv` runs,
all runs in one; torch's goes through one run after the other, pads each batch to its own longest utterance and takes it as
packed sequences. Frames are random, as many as recordings of IEMOCAP's lengths have.
"""

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from jax.sharding import Mesh
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from benchmarks import torch_heads
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
from jaxser import folds, train
from jaxser.heads import DROPOUT, HEADS
from jaxser.store import Frames, frame_mask

FOLDS, CLASSES = 5, 4

MEDIAN_SECONDS, MEAN_SECONDS = 3.58, 4.55
"""IEMOCAP's lengths, taken as log-normal; `benchmarks.extract` has the same."""

SECONDS_OF_FRAMES, SECONDS_OF_WORDS = 5.0, 8.0
"""What the most frames and the most words stand for: sound is cropped to five seconds, and 24 words take some eight."""

TORCH_THREADS = {f"torch, {n} thread{'s' * (n > 1)}": n for n in sorted({1, os.cpu_count() or 1})}
"""torch on one core and on all: on batches this small more threads may well be slower."""

SYSTEMS = ("jaxser", *TORCH_THREADS)

SIZES = ("head", "utterances", "frames", "audio_features", "words", "text_features", "seeds", "updates", "parallel")
"""The flags that a process which measures memory must be given too."""


@dataclass(frozen=True)
class Config:
    """Time updates of a head's training. Takes some minutes on two cores; nothing else should run meanwhile."""

    head: Literal["mlp", "bilstm", "text", "aligned"] = "aligned"
    utterances: int = 480
    frames: int = 62
    """Frames of sound that the longest utterances have: five seconds of wav2vec's, eight averaged into one."""
    audio_features: int = 128
    words: int = 24
    """Words that the longest utterances have."""
    text_features: int = 384
    seeds: int = 2
    """Runs of each of the five folds."""
    rounds: int = 7
    """How often each system has its turn."""
    updates: int = 10
    """Updates of every run a turn."""
    parallel: int = 0
    """Runs of ours at once; 0 takes 1 on a CPU and all elsewhere."""
    json: Path | None = None
    """Write everything measured to this file as well."""
    only: str | None = None
    """One system, two turns and nothing else; this is how peak memory is taken."""


def main(config: Config) -> None:
    """The whole benchmark."""
    if config.only:
        call = training_call(config.only, config)
        call()
        call()
        return
    found: dict[str, Any] = {"machine": machine(), "command": " ".join(["python -m benchmarks.train", *sys.argv[1:]])}
    watch = OtherLoad()
    calls = {name: training_call(name, config) for name in SYSTEMS}
    runs = FOLDS * config.seeds
    say(f"{len(calls)} systems, {config.rounds} rounds of {config.updates} updates of {runs} runs of {config.head}")
    timings = take_turns(calls, config.rounds)
    load = watch.share()
    fastest = min(TORCH_THREADS, key=lambda name: timings[name].median)
    ratios = {f"{config.head}_jax_over_torch": ratio(timings[fastest], timings["jaxser"])}
    found |= {
        "load": load,
        "head": config.head,
        "runs": runs,
        "torch": fastest,
        "rows": [row_of(name, timing, config) for name, timing in timings.items()],
        "ratios": {name: value["median"] for name, value in ratios.items()},
        "ratio_spreads": ratios,
    }
    conclude(found, report(found), config.json)


def training_call(system: str, config: Config) -> Callable[[], Any]:
    """A function that makes the next `config.updates` updates of every run with one system and returns when they are done."""
    inputs, labels = corpus_of(config)
    runs = runs_of(config)
    of_inputs = [standards.moments(frames) for frames in inputs]
    standards = [tuple(standards.standardisation(of, run.train) for of in of_inputs) for run in runs]
    if system == "jaxser":
        return our_call(config, inputs, labels, runs, standards)
    return torch_call(TORCH_THREADS[system], config, inputs, labels, runs, standards)


def our_call(
    config: Config,
    inputs: tuple[Frames, ...],
    labels: np.ndarray,
    runs: list[train.Run],
    standards: list[tuple[standards.Standard, ...]],
) -> Callable[[], None]:
    """The inside of `ensemble.train_runs`, on one device as torch is: the predictions left out."""
    mesh = Mesh(np.array(jax.local_devices()[:1]), ("runs",))
    model, tx = HEADS[config.head].module(CLASSES, DROPOUT), optax.adam(train.LEARNING_RATE)
    inputs, labels = jax.device_put((inputs, labels))
    own = jax.device_put(jax.tree.map(lambda *leaves: np.stack(leaves), *standards))
    keys = jnp.stack([train.run_key(run.seed, run.fold, run.train_size) for run in runs])
    state = ensemble.over_runs(partial(train.start, model, tx), mesh, 1)((inputs,), (keys,))
    parallel = config.parallel or (1 if jax.default_backend() == "cpu" else len(runs))
    step_all = ensemble.over_runs(partial(train.advance, model, tx), mesh, min(parallel, len(runs)))
    plans = plans_of(config, runs)

    def ours() -> None:
        nonlocal state
        state, losses = step_all((inputs, labels), (own, state, next(plans)))
        jax.block_until_ready((state, losses))

    return ours


def torch_call(
    threads: int,
    config: Config,
    inputs: tuple[Frames, ...],
    labels: np.ndarray,
    runs: list[train.Run],
    standards: list[tuple[standards.Standard, ...]],
) -> Callable[[], None]:
    """A model and an optimiser for every run, and for every fold its inputs, standardised once."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    by_fold = {run.fold: standardised(inputs, own, device) for run, own in zip(runs, standards, strict=True) if run.seed == 0}
    learners = []
    for run in runs:
        model = twin_of(config).to(device).train()
        optimiser = torch.optim.Adam(model.parameters(), train.LEARNING_RATE)
        learners.append(Learner(model, optimiser, by_fold[run.fold], labels))
    plans = plans_of(config, runs)

    def theirs() -> None:
        torch.set_num_threads(threads)
        for learner, plan in zip(learners, next(plans), strict=True):
            advance(learner, plan)

    return theirs


@dataclass(frozen=True)
class Learner:
    """What one run needs in torch."""

    model: torch.nn.Module
    optimiser: torch.optim.Optimizer
    inputs: list[list[torch.Tensor]]
    """For each kind of input the valid frames f32[t, d] of every utterance."""
    labels: np.ndarray


def advance(learner: Learner, plan: np.ndarray) -> list[float]:
    """Train one run through `plan`, i32[steps, b], as `train.advance` does. The losses, which only leave a GPU at the end."""
    losses = []
    for planned in plan:
        rows = planned[planned >= 0]
        batch = [ragged([utterances[row] for row in rows]) for utterances in learner.inputs]
        logits = learner.model(*batch)
        loss = functional.cross_entropy(logits, torch.from_numpy(learner.labels[rows].astype(np.int64)).to(logits.device))
        learner.optimiser.zero_grad()
        loss.backward()
        learner.optimiser.step()
        losses.append(loss.detach())
    return [float(loss) for loss in losses]


def ragged(utterances: list[torch.Tensor]) -> torch_heads.Ragged:
    """A batch, padded to its own longest."""
    return torch_heads.Ragged(pad_sequence(utterances, batch_first=True), torch.tensor([len(x) for x in utterances]))


def standardised(
    inputs: tuple[Frames, ...], standards: tuple[standards.Standard, ...], device: str = "cpu"
) -> list[list[torch.Tensor]]:
    """The valid frames of every utterance for torch, in the scale of a run's training rows."""
    return [
        [
            torch.from_numpy((x[mask] - of.mean) / of.scale).to(device)
            for x, mask in zip(frames.x, frames.mask, strict=True)
        ]
        for frames, of in zip(inputs, standards, strict=True)
    ]  # fmt: skip


def corpus_of(config: Config) -> tuple[tuple[Frames, ...], np.ndarray]:
    """What the head reads, and labels i32[n]."""
    random = np.random.default_rng(0)
    spread = (2 * np.log(MEAN_SECONDS / MEDIAN_SECONDS)) ** 0.5
    seconds = MEDIAN_SECONDS * np.exp(spread * random.normal(size=config.utterances))

    def frames_of(longest: int, whole: float, features: int) -> Frames:
        counts = np.clip(np.round(seconds / whole * longest), 1, longest).astype(int)
        x = random.normal(3, 2, (config.utterances, longest, features)).astype(np.float32)
        mask = frame_mask(counts, longest)
        return Frames(np.where(mask[..., None], x, 0), mask)

    kinds = {
        "audio": frames_of(config.frames, SECONDS_OF_FRAMES, config.audio_features),
        "text": frames_of(config.words, SECONDS_OF_WORDS, config.text_features),
    }
    labels = (np.arange(config.utterances) % CLASSES).astype(np.int32)
    return tuple(kinds[kind] for kind in HEADS[config.head].inputs), labels


def runs_of(config: Config) -> list[train.Run]:
    """Five folds of every seed."""
    rows = np.arange(config.utterances)
    of = rows // CLASSES % FOLDS
    return [
        train.Run(seed, fold, 0, config.updates, rows[of != fold], rows[of == fold])
        for seed in range(config.seeds)
        for fold in range(FOLDS)
    ]


def plans_of(config: Config, runs: list[train.Run]) -> Iterator[np.ndarray]:
    """The batches i32[r, steps, b] of one turn after the other."""
    for turn in count():
        start, stop = turn * config.updates, (turn + 1) * config.updates
        yield np.stack(
            [folds.batches(run.train, train.BATCH_SIZE, start, stop, run.seed, run.fold, run.train_size) for run in runs]
        )


def twin_of(config: Config) -> torch.nn.Module:
    """torch's module of a head."""
    made = {"mlp": torch_heads.MLP, "bilstm": torch_heads.Voice, "text": torch_heads.Text, "aligned": torch_heads.Aligned}
    features = {"audio": config.audio_features, "text": config.text_features}
    return made[config.head](*(features[kind] for kind in HEADS[config.head].inputs), CLASSES, DROPOUT)


def row_of(name: str, timing: Timing, config: Config) -> dict[str, Any]:
    """One line of the table and of the JSON. Seconds are those of one update of one run."""
    updates = config.updates * config.seeds * FOLDS
    flags = [word for size in SIZES for word in (f"--{size.replace('_', '-')}", str(getattr(config, size)))]
    return {
        "name": f"update of {config.head}",
        "system": name,
        "dtype": "float32",
        "batch": train.BATCH_SIZE,
        "seconds_per_step": timing.median / updates,
        "low": min(timing.rounds) / updates,
        "high": max(timing.rounds) / updates,
        "compile_seconds": timing.compiling,
        "peak_mib": peak_mib("benchmarks.train", "--only", name, *flags),
    }


def report(found: dict[str, Any]) -> str:
    """Everything as Markdown."""
    header = ["what", "system", "batch", "ms an update", "fastest", "slowest", "updates/s", "compile s", "peak MiB"]
    rows = [
        [
            row["name"],
            row["system"],
            str(row["batch"]),
            *(f"{1000 * row[name]:.2f}" for name in ("seconds_per_step", "low", "high")),
            f"{1 / row['seconds_per_step']:.1f}",
            f"{row['compile_seconds']:.1f}",
            f"{row['peak_mib']:.0f}",
        ]
        for row in found["rows"]
    ]
    ratios = [
        f"- {name}: {v['median']:.2f} ({v['low']:.2f} to {v['high']:.2f}), beside {found['torch']}"
        for name, v in found["ratio_spreads"].items()
    ]
    return "\n".join([*stamp(found), "", table(header, rows), "", *ratios])


if __name__ == "__main__":
    run_benchmark("benchmarks.train", Config, main)
