"""An experiment: one configuration on one corpus, from features to the run folder; several of a kind train as one program."""

import dataclasses
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from etils import epath
from tqdm import tqdm

from jaxser import (
    alignments,
    checkpoint,
    ensemble,
    folds,
    hosts,
    leaks,
    models,
    protocol,
    report,
    results,
    shares,
    states,
    summaries,
    train,
)
from jaxser.corpora import Corpus
from jaxser.devices import processor
from jaxser.errors import CallError, WorkError
from jaxser.extract import Features
from jaxser.files import write_json
from jaxser.heads import HEADS
from jaxser.standards import moments, standardisation
from jaxser.store import Frames

OF_A_KIND = ("train_size", "seeds", "out", "parallel", "memory", "save", "final", "state_seconds")
"""In what experiments may differ that train in one program; all else fixes shapes, features or what an update computes."""

SHOWN = 20
"""Utterances left out that are named one by one before training; the protocol has all."""


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
        left_out = [f"left out: {name}: {reason}" for name, reason in self.corpus.left_out[:SHOWN]]
        if (more := len(self.corpus.left_out) - SHOWN) > 0:
            left_out.append(f"... and {more} more, in protocol.json")
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
            way_out = "leave out --exclude-repeated-text"
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
    if summary is None:
        return False
    states.forget(_states_of(experiment))  # left over where a group of experiments was cut short
    return not experiment.config.save or models.is_there(experiment.out / "model", experiment.config.final)


def run(experiments: Sequence[Experiment], began: float) -> None:
    """Train all of them, which differ in nothing but OF_A_KIND, as one program, and write their run folders.

    `began` is the time.monotonic() from which the seconds of their summaries count, shared out by updates.
    """
    first = experiments[0]
    config = first.config
    for other in experiments[1:]:
        differing = [f.name for f in dataclasses.fields(config) if getattr(config, f.name) != getattr(other.config, f.name)]
        if strange := set(differing) - set(OF_A_KIND):
            raise ValueError(f"experiments that differ in {sorted(strange)} cannot train as one program")
    _demand_one_command(experiments)
    with ExitStack() as claims:
        for one in experiments:
            hosts.of_first(lambda one=one: _begin(one, claims))
        _train_and_write(experiments, began)


def _demand_one_command(experiments: Sequence[Experiment]) -> None:
    # Where files lie may differ from host to host: what is in them stands in the signature.
    places = ("root", "weights", "text_model")
    here = [
        [one.signature, one.config.parallel, one.config.final, {n: v for n, v in one.settings.items() if n not in places}]
        for one in experiments
    ]
    hosts.demand_agreement(here, "the hosts were given different commands, or find different corpora: all must be the same")


def _begin(one: Experiment, claims: ExitStack) -> None:
    claims.enter_context(results.claimed(one.out))
    results.begin(one.out, dict(one.settings))


def _train_and_write(experiments: Sequence[Experiment], began: float) -> None:
    first = experiments[0]
    config, head = first.config, HEADS[first.config.head]
    runs = [make_runs(one) for one in experiments]
    together = [run for some in runs for run in some]
    inputs = inputs_of(first)
    of_inputs = [moments(frames) for frames in inputs]
    model = head.module(len(first.corpus.classes), config.dropout)
    on_all = [run_on_all(one) for one in experiments if one.config.final]
    keep = _keep(experiments)
    total, mine = (sum(run.updates for run in some) for some in (together, hosts.share(together)))
    mine += sum(run.updates for run in hosts.share(on_all))
    hidden = not (hosts.first() and sys.stderr.isatty())
    with tqdm(total=mine, desc=config.head, unit="update", disable=hidden, leave=False) as bar:

        def progress(updates: int, loss: float) -> None:
            bar.update(updates)
            bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)

        def train_some(some: list[train.Run], kept: states.Keep) -> ensemble.Trained:
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
                keep=kept,
            )

        trained, placed = shares.train_shared(together, lambda some: train_some(some, keep.part("runs", at_end=bool(on_all))))
        # By itself, so that no bit of the scores depends on whether it is asked for.
        final = (
            shares.train_shared(on_all, lambda some: train_some(some, keep.part("all", at_end=False)))[0] if on_all else None
        )

    def write() -> None:
        start, lost = 0, []
        finals = iter(range(len(on_all)))
        for one, mine in zip(experiments, runs, strict=True):
            some = range(start, start + len(mine))
            start = some.stop
            whole = final.of([next(finals)]) if one.config.final else None
            if diverged := _diverged(one, mine, trained.of(some), whole):
                lost += diverged
                continue
            share = sum(run.updates for run in mine) / total
            where, seconds = placed[some.start : some.stop], share * (time.monotonic() - began)
            _write(one, mine, model, inputs, trained.of(some), whole, where, seconds)
        for one in experiments:
            states.forget(_states_of(one))
        if lost:
            raise WorkError(f"{'; '.join(lost)}: no mean is honest without them; lower --learning-rate")

    hosts.of_first(write)  # the others wait until they can be read


def _states_of(one: Experiment) -> epath.Path:
    return checkpoint.absolute(one.out) / "training"


def _keep(experiments: Sequence[Experiment]) -> states.Keep:
    # What is under way lies in the folder of the first; a state of another group of experiments is refused.
    first = experiments[0]
    of = {"signatures": [one.signature for one in experiments], "parallel": first.config.parallel}
    device = jax.devices()[0]
    kind = processor() if device.platform == "cpu" else device.device_kind
    of |= {"device": kind, "versions": protocol.versions()}
    folder = _states_of(first) / f"{hosts.index()}-of-{hosts.count()}"
    return states.Keep(folder, "runs under way, each as far as it is", first.config.state_seconds, of)


def _diverged(one: Experiment, runs: list[train.Run], trained: ensemble.Trained, final: ensemble.Trained | None) -> list[str]:
    # What to say of runs that lost their way; the tables of the others are written, but no summary.
    if len(trained.diverged) == len(runs):
        return [f"no run of {one.out} has a finite loss from update {max(trained.diverged.values())} on"]
    lost = {runs[i].name: update for i, update in trained.diverged.items()}
    if final and final.diverged:
        lost["the head on all data"] = final.diverged[0]
    if lost:
        sound = [i for i in range(len(runs)) if i not in trained.diverged]
        random = any(features.extractor.random for features in one.features)
        results.write_results(one.out, one.corpus, [runs[i] for i in sound], trained.of(sound), one.labels, random)
    kept = f"the {len(runs) - len(trained.diverged)} other runs stand in {one.out / 'scores.csv'}"
    return [f"the loss of {name} is no finite number from update {update} on ({kept})" for name, update in lost.items()]


def _write(
    one: Experiment,
    runs: list[train.Run],
    model: Any,
    inputs: tuple[Frames, ...],
    trained: ensemble.Trained,
    final: ensemble.Trained | None,
    placed: list[int],
    seconds: float,
) -> None:
    random = any(features.extractor.random for features in one.features)
    results.write_results(one.out, one.corpus, runs, trained, one.labels, random)
    parameters = sum(leaf[0].size for leaf in jax.tree.leaves(trained.params))
    card = protocol.card(one.config, one.corpus, one.dealt, runs, one.checks, jax.devices(), one.features, parameters)
    known = {"repeated_text": list(one.repeated), "signature": one.signature, "command": one.command}
    write_json(one.out / "protocol.json", card | known)
    summary = summaries.of_runs(one.config, one.corpus, one.labels, len(one.dealt.names), runs, trained, placed)
    summary |= {"random_weights": random, "signature": one.signature, "seconds": round(seconds, 2)}
    if one.config.head == "aligned":
        part = {"max_seconds": one.config.max_seconds, "crop_to": one.config.crop}
        shown = alignments.of_runs(model, one.shown, one.corpus, inputs, one.features, one.labels, runs, trained, part)
        alignments.write(one.out, shown)
    report.draw(one.out, summary)
    if one.config.save:
        card = card | known
        frames = [x.mask.shape[1] for x in inputs]
        models.save(one.out / "model", one.settings, one.features, frames, runs, trained, final, summary, card)
    write_json(one.out / "summary.json", summary)  # last: a folder with a summary is a finished one


def inputs_of(one: Experiment) -> tuple[Frames, ...]:
    """What the head reads, in its order; of the sound, frames averaged as the configuration says."""
    average = one.config.average_frames if HEADS[one.config.head].average else 1
    return tuple(f.frames(one.corpus.utterances, average if f.of == "audio" else 1) for f in one.features)


def run_on_all(one: Experiment) -> train.Run:
    """One more run, with no fold held out, for a model and no score."""
    config, classes = one.config, len(one.corpus.classes)
    rows, fold = np.arange(len(one.labels)), len(one.splits)  # a number of its own, for random streams
    drawn = folds.subset(one.labels, rows, config.train_size, classes, 0, fold)
    updates = config.updates or config.epochs * -(-len(drawn) // config.batch_size)
    return train.Run(0, fold, config.train_size, updates, drawn, rows[:1])  # a row to predict, for there must be one


def make_runs(one: Experiment) -> list[train.Run]:
    """Every seed and fold with its rows."""
    config, classes, runs = one.config, len(one.corpus.classes), []
    for seed in range(config.seeds):
        for fold, rows in enumerate(one.splits):
            drawn = folds.subset(one.labels, rows.train, config.train_size, classes, seed, fold)
            updates = config.updates or config.epochs * -(-len(drawn) // config.batch_size)
            runs.append(train.Run(seed, fold, config.train_size, updates, drawn, rows.test))
    return runs
