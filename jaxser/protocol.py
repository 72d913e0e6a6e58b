"""What fixed the number: the protocol card that every run folder holds, and its one-line signature."""

import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np

from jaxser import __version__, aligned
from jaxser.command import workers
from jaxser.corpora import Corpus
from jaxser.devices import processor
from jaxser.digests import text_digest
from jaxser.extract import Features
from jaxser.folds import Folds
from jaxser.heads import HEADS, MLP_PARAMETERS
from jaxser.leaks import Check
from jaxser.train import Run

LIBRARIES = ("jax", "flax", "optax", "numpy", "scipy", "pyAudioAnalysis", "soundfile", "soxr", "transformers")


def corpus_digest(corpus: Corpus, contents: Sequence[Mapping[str, str]]) -> str:
    """One digest of everything the scores depend on in a corpus: ids, what is read (audio, words, by digest), labels,
    speakers and groups, in their order, from which subsets and batches are drawn."""
    rows = [
        "\t".join([u.id, *(read[u.id] for read in contents), u.label, str(u.speaker), str(u.group)]) for u in corpus.utterances
    ]
    return text_digest("\n".join(rows))


def length_of(config: Any) -> str:
    """The length of training in words."""
    return f"{config.updates}updates" if config.epochs is None else f"{config.epochs}epochs"


def signature(config: Any, corpus: Corpus, folds: Folds, features: Sequence[Features]) -> str:
    """One line that names everything that fixes a score; two runs with one signature on one kind of device give one number."""
    # Which rows make which fold, by number: random streams derive from that too.
    dealt = text_digest(",".join(map(str, folds.of.tolist())))[:8]
    rule = f"{len(folds.names)}by-{_rule_name(corpus, folds)}-{dealt}" + ("-validate" if config.validate else "")
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
            *(part for one in features for part in _names(one)),
            f"head:{config.head}",
            f"train:{config.train_size or 'all'}",
            f"length:{length_of(config)}",
            f"batch:{config.batch_size}",
            f"lr:{config.learning_rate!r}",
            f"dropout:{config.dropout!r}",
            *([f"averaged:{config.average_frames}frames"] if config.average_frames and config.average_frames > 1 else []),
            f"seeds:{config.seeds}",
            "metric:ua-mean-of-folds",
        ]
    )


def _names(features: Features) -> list[str]:
    # The store's name covers all settings, the weights among them; people want to read which weights those were.
    named = [f"{'features' if features.of == 'audio' else 'text'}:{features.name}"]
    settings = features.extractor.settings
    if digest := settings.get("weights_sha256") or settings.get("model_sha256"):
        kind = "weights" if features.of == "audio" else "text-model"
        named.append(f"{kind}:{'-'.join(part for part in (features.extractor.weights, digest[:8]) if part)}")
    return named


def _rule_name(corpus: Corpus, folds: Folds) -> str:
    if not folds.speaker_independent:
        return "RANDOM"
    return "group" if set(folds.names) == {u.group for u in corpus.utterances} else "speaker"


def device_in_words(devices: Sequence[Any]) -> str:
    """The devices of all hosts."""
    hosts = len({device.process_index for device in devices})
    return f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform})" + f" on {hosts} hosts" * (hosts > 1)


def runs_in_words(runs_per_device: list[int]) -> str:
    """How many runs each device had."""
    fewest, most = min(runs_per_device), max(runs_per_device)
    return f"{most} run{'s' * (most > 1)} on each" if fewest == most else f"{fewest} or {most} runs on each"


def versions() -> dict[str, str]:
    """jaxser, Python and the libraries that numbers depend on."""
    own = {"jaxser": __version__, "python": platform.python_version()}
    return own | {name: version(name) for name in LIBRARIES}


def card(
    config: Any,
    corpus: Corpus,
    folds: Folds,
    runs: Sequence[Run],
    checks: Sequence[Check],
    devices: Sequence[Any],
    features: Sequence[Features],
    parameters: int,
) -> dict[str, Any]:
    """The protocol as plain data, for people and programs: what was scored, on whom, how it was split and with what.

    `parameters` is the number of weights and biases that a run trains.
    """
    labels = np.array([u.label for u in corpus.utterances])
    groups = [u.group for u in corpus.utterances]

    def by_class(of: Sequence[str]) -> dict[str, int]:
        found = Counter(of)
        return {name: found[name] for name in corpus.classes}

    counts = {
        str(group): by_class([u.label for u in corpus.utterances if u.group == group]) for group in sorted(set(groups), key=str)
    }
    training = [
        {"fold": run.fold, "held_out": folds.names[run.fold], "test": len(run.test)}
        | {"train": by_class(labels[run.train].tolist())}
        for run in runs
        if run.seed == runs[0].seed
    ]
    return {
        "corpus": corpus.name,
        "synthetic": corpus.name == "synthetic",
        "utterances": len(corpus.utterances),
        "classes": by_class(labels.tolist()),
        "counts_by_group": counts if any(groups) else {},
        "speakers": len({u.speaker for u in corpus.utterances if u.speaker}),
        "left_out": [list(item) for item in corpus.left_out],
        "outside_classes": dict(corpus.outside),
        "notes": list(corpus.notes),
        "fold_rule": folds.rule,
        "speaker_independent": folds.speaker_independent,
        "folds": training,
        "subset_rule": subset_rule(config),
        "leak_checks": [{"looked_for": check.what, "found": check.found} for check in checks],
        "leaks": [line for check in checks for line in check.found],
        "features": " + ".join(one.extractor.name for one in features),
        "settings": {one.of: {**one.extractor.settings, **one.extractor.known} for one in features},
        "training": training_in_words(config, runs, parameters),
        "choices": choices(config),
        "versions": versions(),
        "device": device_in_words(devices),
        "processor": f"{processor()}, {workers()} core{'s' * (workers() > 1)}",
    }


def subset_rule(config: Any) -> str:
    """Which of the rows outside the test fold are trained on, in words."""
    outside = "outside the test fold"
    if config.validate:
        outside = "outside the test fold, which is put away, and the next one, which is scored in its place"
    if config.exclude_repeated_text:
        outside += ", without those whose sentence is also scored"
    if not config.train_size:
        return f"all rows {outside}, as unbalanced as they are"
    return (
        f"{config.train_size} rows {outside}; equally many of each class, drawn anew for each seed and fold; smaller subsets "
        "lie inside larger ones"
    )


def training_in_words(config: Any, runs: Sequence[Run], parameters: int) -> str:
    """Length, size and optimiser in one line."""
    passes = sorted(run.updates / -(-len(run.train) // config.batch_size) for run in runs)
    low, high = (f"{value:,.0f}" if value >= 10 else f"{value:.1f}" for value in (passes[0], passes[-1]))
    epochs = low if low == high else f"{low} to {high}"
    updates = sorted({run.updates for run in runs})
    length = f"{updates[0]:,}" if len(updates) == 1 else f"{updates[0]:,} to {updates[-1]:,}"
    return (
        f"{length} updates of {config.batch_size} rows ({epochs} epochs), Adam at {config.learning_rate:g}, no early stopping; "
        f"{parameters:,} parameters"
    )


def choices(config: Any) -> dict[str, str]:
    """What the paper leaves open, and what this run takes."""
    head = HEADS[config.head]
    audio, text = "audio" in head.inputs, "text" in head.inputs
    chosen = {
        "length": f"{config.epochs} epochs" if config.epochs else f"{config.updates:,} updates at every training size",
        "dropout": f"{config.dropout:g} after each layer, one mask for all frames of an utterance",
        "normalisation": "each feature standardised over all frames of the run's own training rows",
        "last batch of an epoch": "trained on though short, its mean over the rows that are there",
        "UA over folds": "mean of the folds' own, not pooled",
        "interval": "speakers as the unit (groups, then utterances, where they are not named), by linearisation, Student's t "
        "with Bell and McCaffrey's degrees of freedom; seeds are averaged over first",
        "weights at the start": "flax's defaults (LeCun normal, zero biases)",
    }
    if audio:
        part = f"the {config.crop} {config.max_seconds:g} s" if config.max_seconds else "all"
        chosen["part of an utterance"] = f"{part}, cropped before features are computed"
        if config.features == "lld":
            chosen["descriptors"] = f"windows of {config.lld_window:g} ms every {config.lld_hop:g} ms"
        else:
            chosen["layer"] = "context vectors (c)" if config.layer == "c" else "encoder vectors (z)"
        if head.average:
            chosen["frames averaged"] = str(config.average_frames)
    if audio and text and config.max_seconds:
        chosen["words"] = "of the whole utterance, also past the part of its sound that is heard"
    if text:
        chosen["tags in transcripts"] = {"drop": "dropped", "keep": "kept as words"}[config.tags]
        if config.text == "bert":
            chosen["BERT"] = f"{config.text_model}, second-to-last layer; [CLS] and [SEP] seen, their vectors left out"
        else:
            chosen["GloVe"] = "the Stanford tokeniser's rules; an unknown word is the mean of its hyphenated parts, or zeros"
    if config.head in ("attention", "bilstm"):
        chosen["attention"] = "softmax over frames of one linear score"
    if config.head == "mlp":
        chosen["MLP"] = f"two hidden layers of one width, the one nearest to {MLP_PARAMETERS:,} parameters at four classes"
    if config.head in ("bilstm", "text", "aligned"):
        chosen["LSTM"] = f"{aligned.WIDTH} states a direction, weights drawn as torch draws them"
    if config.head == "bilstm":
        chosen["dense layers before the LSTM"] = f"two of {aligned.DENSE}"
    return chosen
