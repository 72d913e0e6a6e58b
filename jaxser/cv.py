"""python -m jaxser.cv: speaker-independent cross-validation, all folds and seeds in one program: a score and its interval."""

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jaxser import bert, corpora, devices, experiments, extract, hosts, report, results, train
from jaxser.command import command_line, demand_at_least, hash_of, run_command, settings_of
from jaxser.errors import CallError
from jaxser.heads import DROPOUT, HEADS


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
    """Score each run on speakers held out *inside* its training folds, not on its test fold: for choosing settings. Over all
    folds the utterances scored are those of the test: confirm a setting chosen by the mean on another corpus, or choose it
    fold by fold from scores.csv."""
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
    memory: float = 0.0
    """GiB that frames may take on each device; 0: what there is. Those that do not fit are read from disk as batches need
    them, with the same results; fewer runs may then be trained at once."""
    save: bool = False
    """Keep every run's head as a model that labels recordings (jaxser.predict), in the run folder's `model`."""
    final: bool = False
    """Train one more head, on all data, and keep it in the model too: implies --save."""
    state_seconds: float = 30.0
    """Seconds of training, at the least, from one saved state to the next: what a kill can lose. A state is saved where
    progress is told, every three seconds, or after 64 updates of all runs where these take longer. They lie in the run folder
    while it is under way; the same command goes on from the last one, and ends with the same bits."""
    out: Path | None = None
    """The run folder itself. Default: runs/<hash of the configuration>."""


NOT_IN_HASH = ("cache", "out", "parallel", "memory", "jobs", "save", "final", "state_seconds", *hosts.FLAGS)
"""What changes no score: where things lie, and how fast."""


def main(config: Config) -> None:
    """The whole command. Results go to stdout, everything else to stderr."""
    config = resolve(config)
    devices.prepare(config.cache)
    with hosts.joined(config):
        validate(config)


def validate(config: Config) -> None:
    """What each host does with a resolved configuration."""
    began = time.monotonic()
    out = folder_of(config)
    results.finished_summary(out, settings(config))  # a folder of something else is refused before any work
    extractors = extract.extractors_of(config, HEADS[config.head].inputs)
    experiment = prepare(config, *extract.extract_all(extract.open_corpus(config), extractors, config))
    for line in experiment.remarks:
        hosts.say(line)
    if not hosts.of_first(lambda: experiments.finished(experiment)):
        experiments.run([experiment], began)
    if hosts.first():
        print(report.table(out))


def prepare(config: Config, corpus: corpora.Corpus, features: Sequence[extract.Features]) -> experiments.Experiment:
    """The experiment of a resolved configuration, with the features that its head reads."""
    return experiments.prepare(
        config, settings(config), command_line("jaxser.cv", config, NOT_IN_HASH), folder_of(config), corpus, features
    )


def resolve(config: Config) -> Config:
    """The same configuration with its defaults filled in, or a CallError for what contradicts itself."""
    extract.check(config)
    if config.updates is not None and config.epochs is not None:
        raise CallError("--updates and --epochs are two ways to say one thing: give one of them")
    least = {
        "train_size": 0,
        "seeds": 1,
        "updates": 1,
        "epochs": 1,
        "batch_size": 1,
        "parallel": 0,
        "memory": 0,
        "state_seconds": 0,
        "average_frames": 1,
    }
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
    if config.final and config.validate:
        raise CallError("--final trains on all data, and --validate puts some of it away: leave one of them out")
    filled = {"classes": extract.classes_of(config), "updates": updates, "average_frames": average, "text_model": text_model}
    filled["save"] = config.save or config.final
    return dataclasses.replace(config, **filled)


def settings(config: Config) -> dict[str, Any]:
    """What config.json holds and the hash covers: the configuration without what changes no score."""
    return settings_of(config, NOT_IN_HASH)


def config_hash(config: Config) -> str:
    """What names the run folder."""
    return hash_of(settings(config))


def folder_of(config: Config) -> Path:
    """The run folder of a resolved configuration."""
    return config.out or Path("runs") / config_hash(config)


if __name__ == "__main__":
    run_command("jaxser.cv", Config, main)
