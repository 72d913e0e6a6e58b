"""An experiment: one configuration on one corpus, from features to the run folder; several of a kind train as one program."""

import dataclasses
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from tqdm import tqdm

from jaxser import alignments, ensemble, folds, hosts, leaks, metrics, protocol, report, results, shares, train
from jaxser.corpora import Corpus
from jaxser.digests import write_json
from jaxser.errors import CallError
from jaxser.extract import Features
from jaxser.heads import HEADS
from jaxser.standards import moments, standardisation
from jaxser.store import Frames

OF_A_KIND = ("train_size", "seeds", "out", "parallel", "memory")
"""In what experiments may differ that train in one program; all else fixes shapes, features or what an update computes."""


@dataclass(frozen=True)
class Experiment:
    """What is to be trained and scored, checked for leaks, before any training."""

    config: Any
    """A resolved cv.Config."""
    settings: Mapping[str, Any]
    """What config.json holds."""
    command: str
    """The command that repeats it."""
    out: Path
    corpus: Corpus
    """The utterances that can be used."""
    features: Sequence[Features]
    dealt: folds.Folds
    splits: Sequence[folds.Split]
    checks: Sequence[leaks.Check]
    repeated: Sequence[Mapping[str, Any]]
    """Repeated sentences by fold, where words are read."""
    labels: np.ndarray
    shown: Sequence[int] | None
    signature: str

    @property
    def remarks(self) -> list[str]:
        """One line for each thing that a reader of the score should know of the data."""
        left_out = [f"left out: {name}: {reason}" for name, reason in self.corpus.left_out]
        return [*left_out, *self.corpus.notes, *(line for check in self.checks for line in check.found)]


def prepare(
    config: Any, settings: Mapping[str, Any], command: str, out: Path, corpus: Corpus, features: Sequence[Features]
) -> Experiment:
    """Deal the folds, look for leaks, and sign.

    Raises CallError and WorkError for folds, sizes or ids that the corpus does not allow, and for a speaker on both sides.
    """
    dealt = folds.assign(corpus, config.folds, config.random_folds)
    checks = [leaks.speakers_apart(corpus.utterances, dealt), leaks.groups_apart(corpus.utterances, dealt)]
    splits, repeated, way_out = folds.splits(dealt, config.validate), [], ""
    for one in features:
        if one.of == "audio":
            sounds = {name: one.store.rows[content].audio for name, content in one.contents.items()}
            checks.append(leaks.repeated_audio(corpus.utterances, dealt, sounds))
            continue
        if config.exclude_repeated_text:
            splits = leaks.without_repeated_text(corpus.utterances, splits)
            way_out = "leave out --exclude-repeated-text, "
        repeated = leaks.repeated_text(corpus.utterances, splits)
        checks.append(leaks.repeated_text_in_words(repeated))
    folds.check_classes(corpus.utterances, corpus.classes, dealt.names, splits, way_out)
    labels = np.array([corpus.classes.index(u.label) for u in corpus.utterances], np.int32)
    folds.check_train_size(labels, splits, config.train_size, len(corpus.classes))
    shown = alignments.chosen(config.show, corpus) if config.show else None
    signature = protocol.signature(config, corpus, dealt, features)
    return Experiment(
        config, settings, command, out, corpus, features, dealt, splits, checks, repeated, labels, shown, signature
    )


def finished(experiment: Experiment) -> bool:
    """Whether its run folder holds its result. Raises CallError where that is another configuration's, or of other data."""
    summary = results.finished_summary(experiment.out, dict(experiment.settings))
    if summary is not None and summary.get("signature") != experiment.signature:
        raise CallError(
            f"{experiment.out} holds the finished result of other data or another version: {summary.get('signature')}; now it "
            f"would be {experiment.signature}. Delete that folder, or put this run elsewhere (--out; of jaxser.paper --runs)"
        )
    return summary is not None


def run(experiments: Sequence[Experiment], began: float) -> None:
    """Train all of them, which differ in nothing but OF_A_KIND, as one program, and write their run folders.

    `began` is the time.monotonic() from which the seconds of their summaries count, shared out by updates.
    """
    first = experiments[0]
    config, head = first.config, HEADS[first.config.head]
    for other in experiments[1:]:
        differing = [f.name for f in dataclasses.fields(config) if getattr(config, f.name) != getattr(other.config, f.name)]
        if strange := set(differing) - set(OF_A_KIND):
            raise ValueError(f"experiments that differ in {sorted(strange)} cannot train as one program")
    runs = []
    for one in experiments:
        hosts.of_first(lambda one=one: results.begin(one.out, dict(one.settings)))
        runs.append(make_runs(one))
    together = [run for some in runs for run in some]
    inputs = inputs_of(first)
    of_inputs = [moments(frames) for frames in inputs]
    model = head.module(len(first.corpus.classes), config.dropout)
    total, mine = (sum(run.updates for run in some) for some in (together, hosts.share(together)))
    hidden = not (hosts.first() and sys.stderr.isatty())
    with tqdm(total=mine, desc=config.head, unit="update", disable=hidden, leave=False) as bar:

        def progress(updates: int, loss: float) -> None:
            bar.update(updates)
            bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)

        def train_some(some: list[train.Run]) -> ensemble.Trained:
            return ensemble.train_runs(
                model,
                optax.adam(config.learning_rate),
                tuple(map(head.summarise, inputs)),
                first.labels,
                some,
                [tuple(standardisation(of, run.train) for of in of_inputs) for run in some],
                config.batch_size,
                config.parallel,
                config.memory,
                progress=progress,
            )

        trained, placed = shares.train_shared(together, train_some)

    def write() -> None:
        start = 0
        for one, mine in zip(experiments, runs, strict=True):
            share = sum(run.updates for run in mine) / total
            stop = start + len(mine)
            _write(one, mine, model, inputs, trained.part(start, stop), placed[start:stop], share * (time.monotonic() - began))
            start = stop

    hosts.of_first(write)  # the others wait until they can be read


def _write(
    one: Experiment,
    runs: list[train.Run],
    model: Any,
    inputs: tuple[Frames, ...],
    trained: ensemble.Trained,
    placed: list[int],
    seconds: float,
) -> None:
    random = any(features.extractor.random for features in one.features)
    results.write_results(one.out, one.corpus, runs, trained, one.labels, random)
    parameters = sum(leaf[0].size for leaf in jax.tree.leaves(trained.params))
    card = protocol.card(one.config, one.corpus, one.dealt, runs, one.checks, jax.devices(), one.features, parameters)
    known = {"repeated_text": list(one.repeated), "signature": one.signature, "command": one.command}
    write_json(one.out / "protocol.json", card | known)
    summary = summarise(one, runs, trained, placed)
    summary |= {"random_weights": random, "signature": one.signature, "seconds": round(seconds, 2)}
    if one.config.head == "aligned":
        part = {"max_seconds": one.config.max_seconds, "crop_to": one.config.crop}
        shown = alignments.of_runs(model, one.shown, one.corpus, inputs, one.features, one.labels, runs, trained, part)
        alignments.write(one.out, shown)
    report.draw(one.out, summary)
    write_json(one.out / "summary.json", summary)  # last: a folder with a summary is a finished one


def inputs_of(one: Experiment) -> tuple[Frames, ...]:
    """What the head reads, in its order; of the sound, frames averaged as the configuration says."""
    average = one.config.average_frames if HEADS[one.config.head].average else 1
    return tuple(f.frames(one.corpus.utterances, average if f.of == "audio" else 1) for f in one.features)


def make_runs(one: Experiment) -> list[train.Run]:
    """Every seed and fold with its rows."""
    config, classes, runs = one.config, len(one.corpus.classes), []
    for seed in range(config.seeds):
        for fold, rows in enumerate(one.splits):
            drawn = folds.subset(one.labels, rows.train, config.train_size, classes, seed, fold)
            updates = config.updates or config.epochs * -(-len(drawn) // config.batch_size)
            runs.append(train.Run(seed, fold, config.train_size, updates, drawn, rows.test))
    return runs


def predictions_of(runs: list[train.Run], trained: ensemble.Trained, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Predicted class of every utterance, i64[seeds, n], and the fold whose run predicted it, i64[n]."""
    seeds = len({run.seed for run in runs})
    predicted, fold = np.zeros((seeds, n), np.int64), np.zeros(n, np.int64)
    for run, logits in zip(runs, trained.logits, strict=True):
        predicted[run.seed, run.test] = logits.argmax(-1)
        fold[run.test] = run.fold
    return predicted, fold


def summarise(one: Experiment, runs: list[train.Run], trained: ensemble.Trained, placed: list[int]) -> dict[str, Any]:
    """The scores with their intervals and the counts: summary.json without signature and time.

    `placed` is the device of each run, of all devices of all hosts; those that got none are not counted.
    """
    corpus, seeds = one.corpus, one.config.seeds
    predicted, fold = predictions_of(runs, trained, len(one.labels))
    unit, units = independent_units(corpus)
    counts = metrics.unit_counts(one.labels, predicted, fold, units, len(corpus.classes))
    summary: dict[str, Any] = {}
    for name, score in metrics.SCORES.items():
        found, by_seed = metrics.estimate([counts], score=score), metrics.mean_score(counts.sum(0), score)
        summary |= {f"{name}_mean": found.value, f"{name}_std": float(by_seed.std(ddof=1)) if seeds > 1 else None}
        summary |= {f"{name}_low": found.low, f"{name}_high": found.high}
    recalls = {}
    for label, name in enumerate(corpus.classes):
        found = metrics.estimate([counts], score=metrics.recall_of(label))
        recalls[name] = {"mean": found.value, "low": found.low, "high": found.high}
    return summary | {
        "recalls": recalls,
        "head": one.config.head,
        "interval_unit": unit,
        "chance": 1 / len(corpus.classes),
        "classes": list(corpus.classes),
        "utterances": len(one.labels),
        "left_out": len(corpus.left_out),
        "speakers": len({u.speaker for u in corpus.utterances if u.speaker}),
        "folds": len(one.dealt.names),
        "seeds": seeds,
        "devices": len(set(placed)),
        "runs_per_device": [placed.count(device) for device in sorted(set(placed))],
        "parallel": trained.parallel,
        "validate": one.config.validate,
    }


def independent_units(corpus: Corpus) -> tuple[str, list[str]]:
    """What an interval counts as independent: speakers, else groups, else (and then too narrow) single utterances."""
    for name in ("speaker", "group"):
        if all(getattr(u, name) for u in corpus.utterances):
            return name, [getattr(u, name) for u in corpus.utterances]
    return "utterance", [u.id for u in corpus.utterances]
