"""Features of a whole corpus into a store, each content once: the engine behind `cv`, and `python -m jaxser.extract`."""

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from platformdirs import user_cache_path

from jaxser import (
    audio,
    bert,
    corpora,
    devices,
    extract_lld,
    extract_text,
    extract_wav2vec,
    hosts,
    lld,
    synthetic,
    transcripts,
    wav2vec,
)
from jaxser.architecture import Architecture
from jaxser.command import demand_at_least, run_command, workers
from jaxser.corpora import Corpus, Utterance
from jaxser.digests import digests, recalled
from jaxser.errors import CallError, WorkError
from jaxser.extractor import Extractor, fill
from jaxser.store import Frames, Store, load_frames


@dataclass(frozen=True)
class Config:
    """Compute the features of a corpus and keep them, so that later runs read neither the audio nor the weights."""

    corpus: Literal["synthetic", "iemocap", "ravdess", "emodb", "csv"] = "synthetic"
    root: Path | None = None
    """The corpus folder, or the CSV file. Not for synthetic."""
    classes: str | None = None
    """`paper` (neutral, happy, sad, angry; the corpus's labels merged as in the paper), `all`, or names separated by commas, as
    labelled, not merged. Default: paper, but all for a CSV."""
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
    text: Literal["none", "bert", "glove"] = "none"
    """Vectors of the words for the heads that read them: a BERT's word pieces, or word vectors from a file."""
    text_model: str | None = None
    """The BERT, by its name on the Hugging Face hub or as a local folder (default: bert-base-uncased); for glove, the file."""
    tags: transcripts.Tags = "drop"
    """Transcribers' tags such as [LAUGHTER]: left out of the text, or kept as words."""
    crop: audio.Crop = "first"
    """Which part of a longer utterance is kept."""
    max_seconds: float = audio.MAX_SECONDS
    """At most this much of an utterance's sound; 0: all of it. Of its words (--text) all are read."""
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
    coordinator: hosts.Coordinator = None
    processes: hosts.Processes = None
    process: hosts.Process = None


FLAGS_OF = {"lld": ("lld_window", "lld_hop"), "wav2vec": ("weights", "layer", "precision")}
"""Flags that one kind of features alone knows. Given with another they would change nothing, silently."""

SOUND_FLAGS = ("features", *(flag for flags in FLAGS_OF.values() for flag in flags), "crop", "max_seconds")
"""Flags that say how sound is read."""


def main(config: Config) -> None:
    """The whole command: a line each of what is in the store afterwards."""
    check(config)
    devices.prepare(config.cache)
    with hosts.joined(config):
        extract_and_report(config)


def extract_and_report(config: Config) -> None:
    """What each host does."""
    began = time.monotonic()
    corpus, features = extract_all(open_corpus(config), extractors_of(config), config)
    if not hosts.first():
        return
    for name, reason in corpus.left_out:
        print(f"left out: {name}: {reason}", file=sys.stderr)
    names = " + ".join(one.extractor.name for one in features)
    print(f"{corpus.name} · {names} · {len(corpus.utterances)} utterances, {len(corpus.left_out)} left out")
    for one in features:
        rows = [one.store.rows[content] for content in {one.contents[u.id] for u in corpus.utterances}]
        seconds, frames = sum(row.seconds for row in rows), sum(row.count for row in rows)
        what = f"{seconds / 3600:.2f} h of sound" if seconds else f"{len(rows):,} different texts"
        print(f"{what} in {frames:,} frames of {one.store.width} numbers: {one.store.folder}")
    print(f"({time.monotonic() - began:.0f} s)")


def check(config: Config) -> None:
    """Raise CallError for what contradicts itself in the corpus and feature flags."""
    if (config.root is None) != (config.corpus == "synthetic"):
        what = "takes no --root: it is made on the spot" if config.root else "needs --root, the folder (or CSV) it lies in"
        raise CallError(f"--corpus {config.corpus} {what}")
    hosts.check(config)
    demand_at_least(config, {"max_seconds": 0, "jobs": 0})
    for features, flags in FLAGS_OF.items():
        for name in flags:
            value = getattr(config, name)
            if features != config.features and value != Config.__dataclass_fields__[name].default:
                raise CallError(f"--{name.replace('_', '-')} {value} goes with --features {features}")
    for name in ("text_model", "tags"):
        if config.text == "none" and (value := getattr(config, name)) != Config.__dataclass_fields__[name].default:
            raise CallError(f"--{name.replace('_', '-')} {value} goes with --text bert or glove")
    if config.text == "glove" and not config.text_model:
        raise CallError("--text glove needs --text-model, a file of word vectors: https://nlp.stanford.edu/projects/glove")


def open_corpus(config: Config) -> Corpus:
    """The corpus that the flags name; the synthetic one is made first where it is not there."""
    root = config.root or hosts.after_first(lambda: synthetic.make(config.cache))
    return corpora.read(config.corpus, root, classes_of(config))


def classes_of(config: Config) -> str:
    """What --classes says, or its default for the corpus."""
    return config.classes or ("all" if config.corpus == "csv" else "paper")


def extractors_of(
    config: Config, kinds: Sequence[Literal["audio", "text"]] | None = None, keep: bool = False
) -> list[Extractor]:
    """The features that the flags name: of the sound, and of the words where --text is given; or of the kinds asked for.

    `keep`: whether an encoder stays in memory once it was read, for one who asks again and again.
    """
    if kinds is None:
        kinds = ("audio",) if config.text == "none" else ("audio", "text")
    # Each remembers in the cache what its weights are.
    of = {"audio": sound_extractor, "text": text_extractor}
    return hosts.after_first(lambda: [of[kind](config, keep) for kind in kinds])


def sound_extractor(config: Config, keep: bool = False) -> Extractor:
    """The features of the sound that the flags name."""

    def contents(utterances: Sequence[Utterance]) -> dict[str, tuple[str, Path]]:
        found = digests((u.path for u in utterances), config.cache / "digests.json")
        return {u.id: (found[u.path], u.path) for u in utterances if u.path in found}

    def why_none(utterance: Utterance) -> str:
        return _why_unreadable(utterance.path)

    if config.features == "lld":
        settings = extract_lld.settings(config.lld_window, config.lld_hop, config.max_seconds, config.crop)
        compute = partial(extract_lld.compute, settings=settings)
        return Extractor("audio", settings, contents, why_none, extract_lld.plan, compute)
    identity = _identify(config.weights, config.cache / "weights.json")
    settings = extract_wav2vec.settings(*identity, config.layer, config.precision, config.max_seconds, config.crop)

    def load() -> wav2vec.Encoder:
        encoder = wav2vec.load(config.weights, config.precision)
        if encoder.digest != identity[1]:
            raise WorkError(f"--weights {config.weights} changed while it was being read: run again")
        return encoder

    name = "" if identity[2] else Path(config.weights).name
    plan = partial(extract_wav2vec.plan, settings=settings)
    compute = partial(extract_wav2vec.compute, settings=settings, load=cache(load) if keep else load)
    return Extractor("audio", settings, contents, why_none, plan, compute, name)


def text_extractor(config: Config, keep: bool = False) -> Extractor:
    """The vectors of the words that the flags name."""
    contents = partial(extract_text.contents, tags=config.tags)
    if config.text == "glove":
        path = Path(config.text_model)
        settings = extract_text.of_glove(path, config.tags, config.cache)
        compute = partial(extract_text.glove_compute, path=path, width=settings["width"])
        return Extractor("text", settings, contents, extract_text.why_none, extract_text.plan, compute, path.name)
    name = config.text_model or bert.DEFAULT
    settings, model = extract_text.of_bert(name, config.tags, config.cache)
    load = partial(bert.load, model)
    compute = partial(extract_text.bert_compute, load=cache(load) if keep else load)
    plan, called, known = extract_text.plan, Path(name).name, extract_text.capitals(model)
    return Extractor("text", settings, contents, extract_text.why_none, plan, compute, called, known)


def _identify(weights: str, memory: Path) -> tuple[Architecture, str, bool]:
    def look() -> dict[str, Any]:
        architecture, digest, random = wav2vec.identify(weights)
        return {"config": architecture.to_json(), "digest": digest, "random": random}

    found = recalled(memory, str(Path(weights).absolute()), look)
    return Architecture.from_json(found["config"]), found["digest"], found.get("random", False)


@dataclass(frozen=True)
class Features:
    """What an extractor made of a corpus: the store, and the content of every utterance in it by id."""

    extractor: Extractor
    store: Store
    contents: Mapping[str, str]

    @property
    def of(self) -> Literal["audio", "text"]:
        """What was read."""
        return self.extractor.of

    @property
    def name(self) -> str:
        """The name of the store, unique to the settings, with what must be said of the weights."""
        return self.store.folder.name + "-RANDOM" * self.extractor.random

    def frames(self, utterances: Sequence[Utterance], average: int = 1) -> Frames:
        """The frames of these utterances, in their order, `average` consecutive ones as their mean.

        They stay on disk until they are asked for. Raises WorkError for an utterance that was not among those extracted.
        """
        if strange := [u.id for u in utterances if u.id not in self.contents]:
            raise WorkError(
                f"{self.extractor.name} was computed for another corpus: it has nothing for {len(strange)} of "
                f"{len(utterances)} utterances, {strange[0]} first"
            )
        return load_frames(self.store, [self.contents[u.id] for u in utterances], average)


def extract_all(corpus: Corpus, extractors: Sequence[Extractor], config: Config) -> tuple[Corpus, list[Features]]:
    """The features of every kind, and the corpus without what cannot be used by all of them.

    The last kind goes first: words cost little, and an utterance without them needs no sound.
    """
    found = []
    for extractor in reversed(extractors):
        corpus, features = extract(corpus, extractor, config.cache, config.jobs, config.strict)
        found.append(features)
    if len(found) > 1:
        sound = found[-1]
        heard = [sound.store.rows[sound.contents[u.id]].seconds for u in corpus.utterances]
        if note := extract_text.heard_in_part(heard, config.max_seconds, config.crop):
            corpus = replace(corpus, notes=(*corpus.notes, note))
    return corpus, found[::-1]


def extract(corpus: Corpus, extractor: Extractor, cache: Path, jobs: int = 0, strict: bool = False) -> tuple[Corpus, Features]:
    """Make sure that the store holds the features of every utterance, reading only what it has never seen.

    Returns the corpus without what cannot be used (listed in its `left_out`) and the features. With `strict` the first
    unusable utterance, or line of the corpus, ends the work with a WorkError. `jobs` is how many work at it, 0: one a core.
    Of several hosts each reads its share of what is new.
    """
    if strict and corpus.left_out:
        raise WorkError(f"{corpus.left_out[0][0]}: {corpus.left_out[0][1]} (--strict)")
    contents = hosts.after_first(lambda: extractor.contents(corpus.utterances))
    store = fill(cache, extractor, contents, workers(jobs))
    usable, left_out = {}, []
    for utterance in corpus.utterances:
        content, _ = contents.get(utterance.id, ("", None))
        if content in store.rows:
            usable[utterance.id] = content
            continue
        reason = store.failed.get(content) or extractor.why_none(utterance)
        if strict:
            raise WorkError(f"{utterance.path}: {reason} (without --strict it would be left out and counted)")
        left_out.append((utterance.id, reason))
    if not usable:
        raise WorkError(f"none of {len(left_out)} utterances can be used; the first one, {left_out[0][0]}: {left_out[0][1]}")
    utterances = tuple(u for u in corpus.utterances if u.id in usable)
    corpus = replace(corpus, utterances=utterances, left_out=corpus.left_out + tuple(left_out))
    if note := extract_text.cut_texts(store.rows, usable):
        corpus = replace(corpus, notes=(*corpus.notes, note))
    return corpus, Features(extractor, store, usable)


def _why_unreadable(path: Path) -> str:
    try:
        audio.load(path)
    except (audio.AudioError, OSError) as error:
        return str(error)
    # Left out it would be missing from a score that the same command would not give again.
    raise WorkError(f"{path} could not be read a moment ago, and now it can: run the same command again")


if __name__ == "__main__":
    run_command("jaxser.extract", Config, main)
