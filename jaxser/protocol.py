"""What fixed the number: the protocol card that every run folder holds, and its one-line signature."""

import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from jaxser import __version__
from jaxser.corpora import Corpus
from jaxser.digests import text_digest
from jaxser.extract import Features
from jaxser.folds import Folds
from jaxser.train import Run

LIBRARIES = ("jax", "flax", "optax", "numpy", "scipy", "pyAudioAnalysis", "soundfile", "soxr", "transformers")


def corpus_digest(corpus: Corpus, contents: Sequence[Mapping[str, str]]) -> str:
    """One digest of everything the scores depend on in a corpus: ids, what is read (audio, words, by digest), labels,
    speakers and groups."""
    rows = sorted(
        "\t".join([u.id, *(read[u.id] for read in contents), u.label, str(u.speaker), str(u.group)]) for u in corpus.utterances
    )
    return text_digest("\n".join(rows))


def signature(config: Any, corpus: Corpus, folds: Folds, features: Sequence[Features], updates: str) -> str:
    """One line that names everything that fixes a score; two runs with one signature on one kind of device give one number."""
    rule = f"{len(folds.names)}by-{_rule_name(corpus, folds)}" + ("-validate" if config.validate else "")
    rule += "-without-repeated-text" * config.exclude_repeated_text
    digest = corpus_digest(corpus, [one.contents for one in features])
    return "|".join(
        [
            f"jaxser:{__version__}",
            f"corpus:{corpus.name}-{digest[:8]}",
            f"classes:{'+'.join(corpus.classes)}",
            f"n:{len(corpus.utterances)}",
            f"left_out:{len(corpus.left_out)}",
            f"folds:{rule}",
            *(f"{'features' if one.of == 'audio' else 'text'}:{one.name}" for one in features),
            f"head:{config.head}",
            f"train:{config.train_size or 'all'}",
            f"length:{updates}",
            f"batch:{config.batch_size}",
            f"lr:{config.learning_rate:g}",
            f"dropout:{config.dropout:g}",
            *([f"averaged:{config.average_frames}frames"] if config.average_frames and config.average_frames > 1 else []),
            f"seeds:{config.seeds}",
            "metric:ua-mean-of-folds",
        ]
    )


def _rule_name(corpus: Corpus, folds: Folds) -> str:
    if not folds.speaker_independent:
        return "RANDOM"
    return "group" if set(folds.names) == {u.group for u in corpus.utterances} else "speaker"


def processor() -> str:
    """The name of this machine's processor, as well as it tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n")
        return next(line.partition(": ")[2] for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """jaxser, Python and the libraries that numbers depend on."""
    own = {"jaxser": __version__, "python": platform.python_version()}
    return own | {name: version(name) for name in LIBRARIES}


def card(
    corpus: Corpus,
    folds: Folds,
    runs: Sequence[Run],
    leaks: Sequence[str],
    devices: Sequence[Any],
    features: Sequence[Features],
) -> dict[str, Any]:
    """The protocol as plain data, for people and programs: what was scored, on whom, how it was split and with what."""
    labels = np.array([u.label for u in corpus.utterances])
    groups = [u.group for u in corpus.utterances]
    counts = {
        str(group): dict(Counter(u.label for u in corpus.utterances if u.group == group))
        for group in sorted(set(groups), key=str)
    }
    training = [
        {"fold": run.fold, "held_out": folds.names[run.fold], "test": len(run.test)}
        | {"train": {name: int((labels[run.train] == name).sum()) for name in corpus.classes}}
        for run in runs
        if run.seed == runs[0].seed
    ]
    return {
        "corpus": corpus.name,
        "synthetic": corpus.name == "synthetic",
        "utterances": len(corpus.utterances),
        "classes": dict(Counter(labels.tolist())),
        "counts_by_group": counts if any(groups) else {},
        "speakers": len({u.speaker for u in corpus.utterances if u.speaker}),
        "left_out": [list(item) for item in corpus.left_out],
        "outside_classes": dict(corpus.outside),
        "notes": list(corpus.notes),
        "fold_rule": folds.rule,
        "speaker_independent": folds.speaker_independent,
        "folds": training,
        "leaks": list(leaks),
        "features": " + ".join(one.extractor.name for one in features),
        "settings": {one.of: dict(one.extractor.settings) for one in features},
        "versions": versions(),
        "device": f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform})",
    }
