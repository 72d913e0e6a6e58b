"""python -m jaxser.cv: speaker-independent cross-validation, all folds and seeds in one program: a score and its interval."""

import dataclasses
import hashlib
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import optax
from tqdm import tqdm

from jaxser import corpora, extract, folds, leaks, metrics, protocol, report, results, train
from jaxser.command import run_command
from jaxser.digests import write_json
from jaxser.errors import CallError
from jaxser.heads import AVERAGE_FRAMES, DROPOUT, HEADS, averaged
from jaxser.store import Store, load_frames


@dataclass(frozen=True)
class Config(extract.Config):
    """Cross-validate a head on a corpus, speaker-independently, and write the score with its 95 % interval.

    With no arguments: a synthetic corpus, made on the spot, so that everything can be seen to work.
    """

    head: Literal["mean", "meanmax", "attention", "mlp"] = "mlp"
    train_size: int = 0
    """Examples to train on in every fold, balanced over the classes; 0: all there are."""
    folds: int | None = None
    """Deal speakers to this many folds. Default: one fold a group where the corpus has groups, else five."""
    random_folds: bool = False
    """Only for a corpus without speakers: random folds. Every score is then marked as not speaker-independent."""
    validate: bool = False
    """Score each run on speakers held out *inside* its training folds, not on its test fold: for choosing settings."""
    seeds: int = 1
    """How many repetitions, seeds 0 to n-1: each draws its own subset, initial weights, batches and dropout."""
    updates: int | None = None
    """Length of training. Default: the head's own number, the same for every training size."""
    epochs: int | None = None
    """Length of training in passes over the training rows, in place of --updates."""
    average_frames: int | None = None
    """Consecutive frames averaged into one before a head that looks at every frame (attention, mlp); 1: none. Default: 16 of
    wav2vec's, which come every 10 ms; none of the descriptors."""
    batch_size: int = train.BATCH_SIZE
    learning_rate: float = train.LEARNING_RATE
    dropout: float = DROPOUT
    parallel: int = 0
    """Runs at once on each device; 0: one on a CPU, as many as memory holds on an accelerator."""
    out: Path | None = None
    """The run folder itself. Default: runs/<hash of the configuration>."""


NOT_IN_HASH = ("cache", "out", "parallel", "jobs")
"""What changes no score: where things lie, and how fast."""


def main(config: Config) -> None:
    """The whole command. Results go to stdout, everything else to stderr."""
    began = time.monotonic()
    config = resolve(config)
    out = config.out or Path("runs") / config_hash(config)
    finished = results.finished_summary(out, settings(config))
    corpus, extractor = extract.open_corpus(config), extract.extractor_of(config)
    corpus, store, contents = extract.extract(corpus, extractor, config.cache, config.jobs, config.strict)
    dealt = folds.assign(corpus, config.folds, config.random_folds)
    leaks.demand_disjoint_speakers(corpus.utterances, dealt)
    folds.check_classes(corpus.utterances, corpus.classes, dealt, config.validate)
    labels = np.array([corpus.classes.index(u.label) for u in corpus.utterances], np.int32)
    folds.check_train_size(labels, dealt, config.train_size, len(corpus.classes), config.validate)
    found = leaks.repeated_audio(corpus.utterances, dealt, {i: store.rows[c].audio for i, c in contents.items()})
    for line in [f"left out: {name}: {reason}" for name, reason in corpus.left_out] + [*corpus.notes, *found]:
        print(line, file=sys.stderr)

    digest = protocol.corpus_digest(corpus, contents)
    signature = protocol.signature(config, corpus, digest, dealt, features_name(store, extractor), length_of(config))
    if finished:
        if finished["signature"] != signature:
            raise CallError(
                f"{out} holds the finished result of other data or another version: {finished['signature']}; now it would be "
                f"{signature}. Give another --out, or delete the folder"
            )
        print(report.table(out))
        return

    results.begin(out, settings(config))
    runs = make_runs(config, labels, dealt, len(corpus.classes))
    frames = load_frames(store, [contents[u.id] for u in corpus.utterances])
    head = HEADS[config.head]
    if head.every_frame:
        frames = averaged(frames, config.average_frames)
    of_each = train.moments(frames)
    total = sum(run.updates for run in runs)
    with tqdm(total=total, desc=config.head, unit="update", disable=not sys.stderr.isatty(), leave=False) as bar:

        def progress(updates: int, loss: float) -> None:
            bar.update(updates)
            bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)

        trained = train.train_runs(
            head.module(len(corpus.classes), config.dropout),
            optax.adam(config.learning_rate),
            (head.summarise(frames),),
            labels,
            runs,
            [(train.standardisation(of_each, run.train),) for run in runs],
            config.batch_size,
            config.parallel,
            progress=progress,
        )
    results.write_results(out, corpus, runs, trained, labels, extractor.random)
    card = protocol.card(corpus, dealt, runs, found, jax.local_devices(), extractor)
    write_json(out / "protocol.json", card | {"signature": signature, "command": repeat_command(config)})
    summary = summarise(config, corpus, dealt, runs, trained, labels)
    summary |= {"random_weights": extractor.random, "signature": signature, "seconds": round(time.monotonic() - began, 2)}
    report.draw(out, summary)
    write_json(out / "summary.json", summary)  # last: a folder with a summary is a finished one
    print(report.table(out))


def resolve(config: Config) -> Config:
    """The same configuration with its defaults filled in, or a CallError for what contradicts itself."""
    extract.check(config)
    if config.updates is not None and config.epochs is not None:
        raise CallError("--updates and --epochs are two ways to say one thing: give one of them")
    least = {"train_size": 0, "seeds": 1, "updates": 1, "epochs": 1, "batch_size": 1, "parallel": 0, "average_frames": 1}
    extract.demand_at_least(config, least)
    if not 0 <= config.dropout < 1:
        raise CallError(f"--dropout {config.dropout:g}: at least 0 and below 1")
    if not 0 < config.learning_rate < np.inf:
        raise CallError(f"--learning-rate {config.learning_rate:g}: above 0")
    updates = config.updates
    if updates is None and config.epochs is None:
        updates = HEADS[config.head].updates[config.features]
    if HEADS[config.head].every_frame:
        average = config.average_frames or AVERAGE_FRAMES[config.features]
    elif (average := config.average_frames or 1) > 1:
        raise CallError(f"--average-frames {average} is for heads that look at every frame, not for --head {config.head}")
    return dataclasses.replace(config, classes=extract.classes_of(config), updates=updates, average_frames=average)


def settings(config: Config) -> dict[str, Any]:
    """What config.json holds and the hash covers: the configuration without what changes no score."""
    values = dataclasses.asdict(config)
    return {name: str(v) if isinstance(v, Path) else v for name, v in values.items() if name not in NOT_IN_HASH}


def config_hash(config: Config) -> str:
    """Twelve hex digits that name the run folder."""
    return hashlib.sha256(json.dumps(settings(config), sort_keys=True).encode()).hexdigest()[:12]


def features_name(store: Store, extractor: extract.Extractor) -> str:
    """The features in a signature: the name of their store, which is unique to their settings."""
    return store.folder.name + "-RANDOM" * extractor.random


def length_of(config: Config) -> str:
    """The length of training in words."""
    return f"{config.updates}updates" if config.epochs is None else f"{config.epochs}epochs"


def repeat_command(config: Config) -> str:
    """The command that repeats a run, with every setting that is not its default."""
    parts = ["python -m jaxser.cv"]
    for field in dataclasses.fields(Config):
        value = getattr(config, field.name)
        if field.name not in NOT_IN_HASH and value != field.default and value is not None:
            flag = "--" + field.name.replace("_", "-")
            parts.append(flag if value is True else f"{flag} {value}")
    return " ".join(parts)


def make_runs(config: Config, labels: np.ndarray, dealt: folds.Folds, classes: int) -> list[train.Run]:
    """Every seed and fold with its rows."""
    runs = []
    for seed in range(config.seeds):
        for fold in range(len(dealt.names)):
            rows, scored = folds.split(dealt, fold, config.validate)
            rows = folds.subset(labels, rows, config.train_size, classes, seed, fold)
            updates = config.updates or config.epochs * -(-len(rows) // config.batch_size)
            runs.append(train.Run(seed, fold, config.train_size, updates, rows, scored))
    return runs


def predictions_of(runs: list[train.Run], trained: train.Trained, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Predicted class of every utterance, i64[seeds, n], and the fold whose run predicted it, i64[n]."""
    seeds = len({run.seed for run in runs})
    predicted, fold = np.zeros((seeds, n), np.int64), np.zeros(n, np.int64)
    for run, logits in zip(runs, trained.logits, strict=True):
        predicted[run.seed, run.test] = logits.argmax(-1)
        fold[run.test] = run.fold
    return predicted, fold


def summarise(
    config: Config,
    corpus: corpora.Corpus,
    dealt: folds.Folds,
    runs: list[train.Run],
    trained: train.Trained,
    labels: np.ndarray,
) -> dict[str, Any]:
    """The scores with their intervals and the counts: summary.json without signature and time."""
    predicted, fold = predictions_of(runs, trained, len(labels))
    unit, units = independent_units(corpus)
    counts = metrics.unit_counts(labels, predicted, fold, units, len(corpus.classes))
    summary: dict[str, Any] = {}
    for name in metrics.CELLS:
        by_seed = metrics.mean_score(counts.sum(0), name)
        low, high = metrics.speaker_interval(counts, name) or (None, None)
        summary |= {
            f"{name}_mean": float(by_seed.mean()),
            f"{name}_std": float(by_seed.std(ddof=1)) if config.seeds > 1 else None,
        }
        summary |= {f"{name}_low": low, f"{name}_high": high}
    return summary | {
        "interval_unit": unit,
        "chance": 1 / len(corpus.classes),
        "classes": list(corpus.classes),
        "utterances": len(labels),
        "left_out": len(corpus.left_out),
        "speakers": len({u.speaker for u in corpus.utterances if u.speaker}),
        "folds": len(dealt.names),
        "seeds": config.seeds,
        "devices": trained.devices,
        "runs_per_device": -(-len(runs) // trained.devices),
        "parallel": trained.parallel,
        "validate": config.validate,
    }


def independent_units(corpus: corpora.Corpus) -> tuple[str, list[str]]:
    """What an interval counts as independent: speakers, else groups, else (and then too narrow) single utterances."""
    for name in ("speaker", "group"):
        if all(getattr(u, name) for u in corpus.utterances):
            return name, [getattr(u, name) for u in corpus.utterances]
    return "utterance", [u.id for u in corpus.utterances]


if __name__ == "__main__":
    run_command("jaxser.cv", Config, main)
