"""Features of a whole corpus into a store, each content once: the engine behind `cv`, and `python -m jaxser.extract`."""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from platformdirs import user_cache_path

from jaxser import audio, corpora, extract_lld, extract_wav2vec, lld, synthetic, wav2vec
from jaxser.architecture import Architecture
from jaxser.command import run_command
from jaxser.corpora import Corpus, Utterance
from jaxser.digests import digests, write_json
from jaxser.errors import CallError, WorkError
from jaxser.store import Entry, Store, open_store, write_part


@dataclass(frozen=True)
class Config:
    """Compute the features of a corpus and keep them, so that later runs need neither the audio nor the weights."""

    corpus: Literal["synthetic", "iemocap", "ravdess", "emodb", "csv"] = "synthetic"
    root: Path | None = None
    """The corpus folder, or the CSV file. Not for synthetic."""
    classes: str | None = None
    """`paper` (neutral, happy, sad, angry; the corpus's labels merged as in the paper), `all`, or names separated by commas.
    Default: paper, but all for a CSV."""
    features: Literal["lld", "wav2vec"] = "wav2vec"
    """`wav2vec`: the frames of a pretrained network. `lld`: pyAudioAnalysis' 34 low-level descriptors."""
    weights: str = "nano"
    """For wav2vec: `nano`, which ships with jaxser; what `python -m jaxser.pretrain` or `python -m convert.wav2vec` wrote; or
    `random:SEED`, an untrained network of the large architecture for comparison (`random-nano:SEED`, `random-base:SEED`:
    smaller ones)."""
    layer: extract_wav2vec.Layer = "c"
    """Of wav2vec: `c`, the context vectors of the paper, or `z`, the encoder below them."""
    precision: wav2vec.Precision = "float32"
    """Of wav2vec's products: `bfloat16` for speed on GPU and TPU; norms stay in float32."""
    crop: audio.Crop = "first"
    """Which part of a longer utterance is kept."""
    max_seconds: float = audio.MAX_SECONDS
    """At most this much of an utterance; 0: all of it."""
    lld_window: float = lld.WINDOW_MS
    """Window of the descriptors in ms."""
    lld_hop: float = lld.HOP_MS
    """Hop of the descriptors in ms."""
    strict: bool = False
    """End at the first file that cannot be used, in place of leaving it out and counting it."""
    jobs: int = 0
    """Processes that compute descriptors, or threads that decode for wav2vec; 0: one a core."""
    cache: Annotated[Path, tyro.conf.arg(help_behavior_hint="(default: the user's cache folder)")] = user_cache_path("jaxser")
    """Where features are stored between runs."""


FLAGS_OF = {"lld": ("lld_window", "lld_hop"), "wav2vec": ("weights", "layer", "precision")}
"""Flags that one kind of features alone knows. Given with another they would change nothing, silently."""


@dataclass(frozen=True)
class Extractor:
    """Features of one kind with one set of settings."""

    settings: Mapping[str, Any]
    """Everything that fixes the frames of a content; the key of the store."""
    parts: Callable[[Sequence[tuple[str, Path]], int], Iterator[list[Entry]]]
    """(content, path) pairs and the number of workers -> entries, in whole parts of some seconds of work each."""
    weights: str = ""
    """What people call the weights, where there are any; the settings name them by content."""

    @property
    def name(self) -> str:
        """What people call the features."""
        words = [self.settings["extractor"], self.weights, self.settings.get("layer", ""), "RANDOM WEIGHTS" * self.random]
        return " ".join(word for word in words if word)

    @property
    def random(self) -> bool:
        """Whether the features come from weights that were never trained: to be said with every number made from them."""
        return self.settings.get("weights") == "RANDOM"


def main(config: Config) -> None:
    """The whole command: a line each of what is in the store afterwards."""
    began = time.monotonic()
    check(config)
    corpus, extractor = open_corpus(config), extractor_of(config)
    corpus, store, contents = extract(corpus, extractor, config.cache, config.jobs, config.strict)
    for name, reason in corpus.left_out:
        print(f"left out: {name}: {reason}", file=sys.stderr)
    rows = [store.rows[content] for content in set(contents.values())]
    print(f"{corpus.name} · {extractor.name} · {len(contents)} utterances, {len(corpus.left_out)} left out")
    hours, frames = sum(row.seconds for row in rows) / 3600, sum(row.count for row in rows)
    print(f"{hours:.2f} h of sound in {frames:,} frames of {store.width} numbers")
    print(f"{store.folder} ({time.monotonic() - began:.0f} s)")


def check(config: Config) -> None:
    """Raise CallError for what contradicts itself in the corpus and feature flags."""
    if (config.root is None) != (config.corpus == "synthetic"):
        what = "takes no --root: it is made on the spot" if config.root else "needs --root, the folder (or CSV) it lies in"
        raise CallError(f"--corpus {config.corpus} {what}")
    demand_at_least(config, {"max_seconds": 0, "jobs": 0})
    for features, flags in FLAGS_OF.items():
        for name in flags:
            value = getattr(config, name)
            if features != config.features and value != Config.__dataclass_fields__[name].default:
                raise CallError(f"--{name.replace('_', '-')} {value} goes with --features {features}")


def demand_at_least(config: Any, least: Mapping[str, int]) -> None:
    """Raise CallError for the first of these flags that is below its smallest value, or no finite number."""
    for name, smallest in least.items():
        value = getattr(config, name)
        if value is not None and not smallest <= value < float("inf"):
            raise CallError(f"--{name.replace('_', '-')} {value}: at least {smallest}")


def open_corpus(config: Config) -> Corpus:
    """The corpus that the flags name; the synthetic one is made first where it is not there."""
    return corpora.read(config.corpus, config.root or synthetic.make(config.cache), classes_of(config))


def classes_of(config: Config) -> str:
    """What --classes says, or its default for the corpus."""
    return config.classes or ("all" if config.corpus == "csv" else "paper")


def extractor_of(config: Config) -> Extractor:
    """The features that the flags name."""
    if config.features == "lld":
        settings = extract_lld.settings(config.lld_window, config.lld_hop, config.max_seconds, config.crop)
        return Extractor(settings, partial(extract_lld.parts, settings=settings))
    identity = _identify(config.weights, config.cache / "weights.json")
    settings = extract_wav2vec.settings(*identity, config.layer, config.precision, config.max_seconds, config.crop)

    def load() -> wav2vec.Encoder:
        encoder = wav2vec.load(config.weights, config.precision)
        if encoder.digest != identity[1]:
            raise WorkError(f"--weights {config.weights} changed while it was being read: run again")
        return encoder

    name = "" if identity[2] else Path(config.weights).name
    return Extractor(settings, partial(extract_wav2vec.parts, settings=settings, load=load), name)


def _identify(weights: str, memory: Path) -> tuple[Architecture, str, bool]:
    # Remembered, so that a store can be used when the weights that made it are gone.
    try:
        known = json.loads(memory.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    name = str(Path(weights).absolute())
    try:
        architecture, digest, random = wav2vec.identify(weights)
    except CallError:
        if name not in known or Path(weights).exists():
            raise
        return Architecture.from_json(known[name]["config"]), known[name]["digest"], False
    entry = {"config": architecture.to_json(), "digest": digest}
    if not random and weights not in wav2vec.SHIPPED_NAMES and known.get(name) != entry:
        memory.parent.mkdir(parents=True, exist_ok=True)
        write_json(memory, known | {name: entry})
    return architecture, digest, random


def extract(
    corpus: Corpus, extractor: Extractor, cache: Path, jobs: int = 0, strict: bool = False
) -> tuple[Corpus, Store, dict[str, str]]:
    """Make sure that the store holds the features of every utterance, reading only audio that it has never seen.

    Returns the corpus without what cannot be used (listed in its `left_out`), the store, and the content digest of each
    utterance by id. With `strict` the first unusable file, or line of the corpus, ends the work with a WorkError. `jobs`
    is the number of workers, 0 for one a core.
    """
    if strict and corpus.left_out:
        raise WorkError(f"{corpus.left_out[0][0]}: {corpus.left_out[0][1]} (--strict)")
    store = open_store(cache, extractor.settings)
    if store.damaged:
        print(f"{store.folder}: {len(store.damaged)} damaged parts are made anew", file=sys.stderr)
    contents = digests((u.path for u in corpus.utterances), cache / "digests.json")
    todo: dict[str, Utterance] = {}
    for utterance in corpus.utterances:
        content = contents.get(utterance.path)
        if content and content not in store.rows and content not in store.failed:
            todo.setdefault(content, utterance)
    if todo:
        _extract_missing(store, todo, extractor, jobs)
        store = open_store(cache, extractor.settings)
    usable, left_out = {}, []
    for utterance in corpus.utterances:
        content = contents.get(utterance.path)
        if content in store.rows:
            usable[utterance.id] = content
            continue
        reason = store.failed.get(content) or _why_unreadable(utterance.path)
        if strict:
            raise WorkError(f"{utterance.path}: {reason} (without --strict it would be left out and counted)")
        left_out.append((utterance.id, reason))
    if not usable:
        raise WorkError(f"none of {len(left_out)} files can be used; the first one, {left_out[0][0]}: {left_out[0][1]}")
    utterances = tuple(u for u in corpus.utterances if u.id in usable)
    return replace(corpus, utterances=utterances, left_out=corpus.left_out + tuple(left_out)), store, usable


def _extract_missing(store: Store, todo: Mapping[str, Utterance], extractor: Extractor, jobs: int) -> None:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    tasks = [(content, utterance.path) for content, utterance in todo.items()]
    for part in extractor.parts(tasks, jobs=jobs or cores or 1):
        write_part(store, part)


def _why_unreadable(path: Path) -> str:
    try:
        audio.load(path)
    except (audio.AudioError, OSError) as error:
        return str(error)
    return "it changed while it was being read"


if __name__ == "__main__":
    run_command("jaxser.extract", Config, main)
