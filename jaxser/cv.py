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

from jaxser import alignments, bert, corpora, extract, folds, leaks, metrics, protocol, report, results, train
from jaxser.command import demand_at_least, run_command
from jaxser.digests import write_json
from jaxser.errors import CallError
from jaxser.heads import DROPOUT, HEADS, averaged
from jaxser.store import Frames


@dataclass(frozen=True)
class Config(extract.Config):
    """Cross-validate a head on a corpus, speaker-independently, and write the score with its 95 % interval.

    With no arguments: a synthetic corpus, made on the spot, so that everything can be seen to work.
    """

    head: Literal["mean", "meanmax", "attention", "mlp", "bilstm", "text", "aligned"] = "mlp"
    """The paper's four heads; `aligned`, which reads the words too (--text); and its halves: `text` reads nothing but words,
    `bilstm` nothing but sound."""
    train_size: int = 0
    """Examples to train on in every fold, balanced over the classes; 0: all there are."""
    folds: int | None = None
    """Deal speakers to this many folds. Default: one fold a group where the corpus has groups, else five."""
    random_folds: bool = False
    """Only for a corpus without speakers: random folds. Every score is then marked as not speaker-independent."""
    exclude_repeated_text: bool = False
    """Train each fold without the utterances whose sentence also stands, word for word, in its test part."""
    show: tuple[str, ...] = ()
    """Ids of utterances whose alignment is drawn. Default: one of each class, recognised and with the median certainty."""
    validate: bool = False
    """Score each run on speakers held out *inside* its training folds, not on its test fold: for choosing settings."""
    seeds: int = 1
    """How many repetitions, seeds 0 to n-1: each draws its own subset, initial weights, batches and dropout."""
    updates: int | None = None
    """Length of training. Default: the head's own number, the same for every training size."""
    epochs: int | None = None
    """Length of training in passes over the training rows, in place of --updates."""
    average_frames: int | None = None
    """Consecutive frames of sound averaged into one before a head that looks at every frame (attention, mlp, bilstm, aligned);
    1: none. Default: 16 of wav2vec's, which come every 10 ms, and none of the descriptors; 8 and 4 for bilstm and aligned."""
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
    head = HEADS[config.head]
    extractors = extract.extractors_of(config, head.inputs)
    corpus, features = extract.extract_all(extract.open_corpus(config), extractors, config)
    dealt = folds.assign(corpus, config.folds, config.random_folds)
    leaks.demand_disjoint_speakers(corpus.utterances, dealt)
    rows, found, repeated = rows_and_leaks(config, corpus, dealt, features)
    labels = np.array([corpus.classes.index(u.label) for u in corpus.utterances], np.int32)
    folds.check_train_size(labels, rows, config.train_size, len(corpus.classes))
    shown = alignments.chosen(config.show, corpus) if config.show else None
    for line in [f"left out: {name}: {reason}" for name, reason in corpus.left_out] + [*corpus.notes, *found]:
        print(line, file=sys.stderr)

    signature = protocol.signature(config, corpus, dealt, features, length_of(config))
    if finished:
        if finished["signature"] != signature:
            raise CallError(
                f"{out} holds the finished result of other data or another version: {finished['signature']}; now it would be "
                f"{signature}. Give another --out, or delete the folder"
            )
        print(report.table(out))
        return

    results.begin(out, settings(config))
    runs = make_runs(config, labels, rows, len(corpus.classes))
    inputs = inputs_of(config, corpus, features)
    of_each = [train.moments(frames) for frames in inputs]
    model = head.module(len(corpus.classes), config.dropout)
    total = sum(run.updates for run in runs)
    with tqdm(total=total, desc=config.head, unit="update", disable=not sys.stderr.isatty(), leave=False) as bar:

        def progress(updates: int, loss: float) -> None:
            bar.update(updates)
            bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)

        trained = train.train_runs(
            model,
            optax.adam(config.learning_rate),
            tuple(map(head.summarise, inputs)),
            labels,
            runs,
            [tuple(train.standardisation(moments, run.train) for moments in of_each) for run in runs],
            config.batch_size,
            config.parallel,
            progress=progress,
        )
    random = any(one.extractor.random for one in features)
    results.write_results(out, corpus, runs, trained, labels, random)
    card = protocol.card(corpus, dealt, runs, found, jax.local_devices(), features) | {"repeated_text": repeated}
    write_json(out / "protocol.json", card | {"signature": signature, "command": repeat_command(config)})
    summary = summarise(config, corpus, dealt, runs, trained, labels)
    summary |= {"random_weights": random, "signature": signature, "seconds": round(time.monotonic() - began, 2)}
    if config.head == "aligned":
        part = {"max_seconds": config.max_seconds, "crop_to": config.crop}
        alignments.write(out, alignments.of_runs(model, shown, corpus, inputs, features, labels, runs, trained, part))
    report.draw(out, summary)
    write_json(out / "summary.json", summary)  # last: a folder with a summary is a finished one
    print(report.table(out))


def resolve(config: Config) -> Config:
    """The same configuration with its defaults filled in, or a CallError for what contradicts itself."""
    extract.check(config)
    if config.updates is not None and config.epochs is not None:
        raise CallError("--updates and --epochs are two ways to say one thing: give one of them")
    least = {"train_size": 0, "seeds": 1, "updates": 1, "epochs": 1, "batch_size": 1, "parallel": 0, "average_frames": 1}
    demand_at_least(config, least)
    if not 0 <= config.dropout < 1:
        raise CallError(f"--dropout {config.dropout:g}: at least 0 and below 1")
    if not 0 < config.learning_rate < np.inf:
        raise CallError(f"--learning-rate {config.learning_rate:g}: above 0")
    head = HEADS[config.head]
    for kind, flags in {"audio": extract.SOUND_FLAGS, "text": ("text",)}.items():
        for name in flags if kind not in head.inputs else ():
            if (value := getattr(config, name)) != getattr(Config, name):
                readers = ", ".join(name for name, other in HEADS.items() if kind in other.inputs)
                flag = f"--{name.replace('_', '-')} {value}"
                raise CallError(f"{flag} changes nothing for --head {config.head}, which reads no {kind}: {readers} do")
    if "text" in head.inputs and config.text == "none":
        raise CallError(f"--head {config.head} reads words: say --text bert, or --text glove --text-model FILE")
    if config.exclude_repeated_text and "text" not in head.inputs:
        raise CallError(f"--exclude-repeated-text is for heads that read words, not for --head {config.head}")
    if config.show and config.head != "aligned":
        raise CallError(f"--show draws alignments, and --head {config.head} has none")
    features = config.features if "audio" in head.inputs else config.text
    updates = config.updates
    if updates is None and config.epochs is None:
        updates = head.updates[features]
    if head.average:
        average = config.average_frames or head.average[features]
    elif (average := config.average_frames or 1) > 1:
        raise CallError(f"--average-frames {average} is for heads that look at every frame, not for --head {config.head}")
    text_model = config.text_model or (bert.DEFAULT if config.text == "bert" else None)
    filled = {"classes": extract.classes_of(config), "updates": updates, "average_frames": average, "text_model": text_model}
    return dataclasses.replace(config, **filled)


def settings(config: Config) -> dict[str, Any]:
    """What config.json holds and the hash covers: the configuration without what changes no score."""
    values = dataclasses.asdict(config)
    values = {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}
    return {name: str(v) if isinstance(v, Path) else v for name, v in values.items() if name not in NOT_IN_HASH}


def config_hash(config: Config) -> str:
    """Twelve hex digits that name the run folder."""
    return hashlib.sha256(json.dumps(settings(config), sort_keys=True).encode()).hexdigest()[:12]


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
            words = value if isinstance(value, tuple) else [value]
            parts.append(flag if value is True else " ".join([flag, *map(str, words)]))
    return " ".join(parts)


def rows_and_leaks(
    config: Config, corpus: corpora.Corpus, dealt: folds.Folds, features: list[extract.Features]
) -> tuple[list[folds.Split], list[str], list[dict[str, Any]]]:
    """The rows of every fold, one line for each leak that was found, and the counts of repeated sentences by fold."""
    rows, found, repeated, way_out = folds.splits(dealt, config.validate), [], [], ""
    for one in features:
        if one.of == "audio":
            sounds = {name: one.store.rows[content].audio for name, content in one.contents.items()}
            found += leaks.repeated_audio(corpus.utterances, dealt, sounds)
            continue
        if config.exclude_repeated_text:
            rows = leaks.without_repeated_text(corpus.utterances, rows)
            way_out = "leave out --exclude-repeated-text, "
        repeated = leaks.repeated_text(corpus.utterances, rows)
        found += leaks.repeated_text_in_words(repeated)
    folds.check_classes(corpus.utterances, corpus.classes, dealt.names, rows, way_out)
    return rows, found, repeated


def inputs_of(config: Config, corpus: corpora.Corpus, features: list[extract.Features]) -> tuple[Frames, ...]:
    """What the head reads, in its order; of the sound, frames averaged as the configuration says."""
    frames = [one.frames(corpus.utterances) for one in features]
    return tuple(
        averaged(f, config.average_frames) if one.of == "audio" and HEADS[config.head].average else f
        for f, one in zip(frames, features, strict=True)
    )


def make_runs(config: Config, labels: np.ndarray, splits: list[folds.Split], classes: int) -> list[train.Run]:
    """Every seed and fold with its rows."""
    runs = []
    for seed in range(config.seeds):
        for fold, rows in enumerate(splits):
            drawn = folds.subset(labels, rows.train, config.train_size, classes, seed, fold)
            updates = config.updates or config.epochs * -(-len(drawn) // config.batch_size)
            runs.append(train.Run(seed, fold, config.train_size, updates, drawn, rows.test))
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
