"""A trained model that people can use: the heads of a cross-validation with all that labelling new speech needs.

It is one Orbax checkpoint: every run's parameters and standardisation, the configuration, the settings of its features with the
sha256 of the encoder behind them, the temperature, the score and the protocol card. The encoder's own weights stay where
they are.
"""

import dataclasses
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.errors import FlaxError
from jaxtyping import Array, Float, Float32, Float64
from platformdirs import user_cache_path

from jaxser import audio, cards, checkpoint, extract, wav2vec
from jaxser.audio import AudioError
from jaxser.calibration import softmax
from jaxser.command import differences, workers
from jaxser.corpora import Utterance
from jaxser.ensemble import Trained
from jaxser.errors import CallError, WorkError
from jaxser.extractor import Extractor
from jaxser.heads import HEADS
from jaxser.kinds import misfit
from jaxser.standards import Standard, standardised
from jaxser.store import Entry, Frames, averaged, frame_mask
from jaxser.train import Run

KIND = "a trained recogniser"
"""What its checkpoints say that they hold."""

ABOUT_KINDS = {
    "config": {
        **dict.fromkeys(("head", "features", "weights", "layer", "precision", "text", "tags", "crop"), str),
        **dict.fromkeys(("dropout", "max_seconds", "lld_window", "lld_hop"), float | int),
        "average_frames": int, "text_model": str | None,
    },
    "classes": [str], "members": [{"fold": int, "seed": int}], "final": bool, "temperature": float,
    "longest": [int], "inputs": [{"of": str, "name": str, "random": bool, "settings": dict}], "weights_at": str | None,
    "summary": {"signature": str}, "card": dict,
}  # fmt: skip
"""What a model must say of itself to be read again."""

MOST_FRAMES = 2**23
"""More frames than a day of speech has: of an utterance, a number that is damaged."""

BATCHES = (1, 8, 64)
"""How many utterances a head reads at once: each size is compiled, for one recording must not wait for the work of many."""

ALL_DATA = "all data"
"""What a head was trained on that has no fold."""


@dataclass(frozen=True)
class Prediction:
    """What a recogniser makes of one utterance."""

    label: str
    probabilities: Mapping[str, float]
    """By class, in the order of the classes: calibrated, unless it was asked otherwise; their sum is 1."""
    agreement: float
    """Of the heads, the share that would give this label alone."""


@dataclass(frozen=True)
class Item:
    """One thing to label: sound, words, or both."""

    name: str
    source: audio.Source | None = None
    text: str | None = None


@dataclass(frozen=True)
class Members:
    """Heads with what each of them was trained on: all leaves have a leading axis r."""

    names: tuple[Mapping[str, Any], ...]
    """`fold` and `seed` of each; no fold where it was trained on all data."""
    params: Any
    standards: tuple[Standard, ...]

    def only(self, number: int) -> "Members":
        """One of them."""
        params, standards = jax.tree.map(lambda leaf: leaf[number : number + 1], (self.params, self.standards))
        return Members(self.names[number : number + 1], params, standards)


@dataclass(frozen=True, eq=False)
class Recogniser:
    """Heads, and how the speech that they read is turned into frames."""

    classes: tuple[str, ...]
    members: Members
    """The heads whose mean is taken."""
    temperature: float
    """What their logits are divided by; 1 leaves them as they are."""
    head: str
    module: nn.Module
    longest: tuple[int, ...]
    """Of each of its inputs, the frames of the longest utterance it was trained with: what is compiled for."""
    average: int
    extractors: tuple[Extractor, ...]
    about: Mapping[str, Any]
    """What the checkpoint says of itself: configuration, score, protocol card."""

    def predict(
        self, signal: Any, sampling_rate: int, text: str | Sequence[str] | None = None
    ) -> Prediction | list[Prediction]:
        """The label of a signal of any rate, mono or stereo; of a list of signals, a list of theirs.

        `text` is for heads that read words: one for each signal. Whole numbers are taken as PCM. As in training, at most
        `max_seconds` of the configuration are heard. Raises CallError for what is no signal, AudioError for one that is
        silent, too short, or not finite.
        """
        if not isinstance(signal, list | tuple):
            return self.predict([signal], sampling_rate, None if text is None else [text])[0]
        texts = [None] * len(signal) if text is None else text
        if isinstance(texts, str) or len(signal) != len(texts):
            raise CallError(f"{len(signal)} signals need as many texts")
        sounds = [audio.from_array(one, sampling_rate) for one in signal]
        items = [Item(f"signal {i}", sound, said) for i, (sound, said) in enumerate(zip(sounds, texts, strict=True))]
        found = list(self.stream(items, jobs=1))
        for item, prediction in zip(items, found, strict=True):
            if isinstance(prediction, str):
                raise AudioError(f"{item.name}: {prediction}")
        return found

    def stream(self, items: Sequence[Item], jobs: int = 0, bar: bool = False, skip: int = 0) -> Iterator[Prediction | str]:
        """What it makes of each item but the first `skip`, in their order and as soon as it is known, or why nothing.

        What comes out for one depends neither on `skip` nor on how many workers (`jobs`) there are.
        """
        blocks = [block for block in _blocks(len(items)) if block.stop > skip]
        entries = zip(*(self._entries(extractor, items, blocks, jobs, bar) for extractor in self.extractors), strict=True)
        for block in blocks:
            some = [next(entries) for _ in block]
            reasons = [next((e.reason for e in entry if e.frames is None), "") for entry in some]
            usable = [entry for entry, reason in zip(some, reasons, strict=True) if not reason]
            found = iter(self._predictions(usable))
            yield from [reason or next(found) for reason in reasons][max(0, skip - block.start) :]

    def _entries(
        self, extractor: Extractor, items: Sequence[Item], blocks: Sequence[range], jobs: int, bar: bool
    ) -> Iterator[Entry]:
        # In the order of the items.
        if extractor.of == "text":
            yield from _texts(extractor, [items[i] for block in blocks for i in block])
            return
        planned = [extractor.plan([(f"{i}", items[i].source) for i in block], workers(jobs)) for block in blocks]
        found = extractor.compute([part for parts in planned for part in parts], workers(jobs), bar)
        for block, parts in zip(blocks, planned, strict=True):
            there = {entry.content: entry for _ in parts for entry in next(found)}
            yield from (there[f"{i}"] for i in block)

    def _predictions(self, entries: Sequence[tuple[Entry, ...]]) -> Iterator[Prediction]:
        if not entries:
            return
        probabilities = softmax(self.logits([tuple(e.frames for e in entry) for entry in entries]), self.temperature)
        mean = probabilities.mean(0)
        for i, of in enumerate(mean):
            label = int(of.argmax())
            agreement = float((probabilities[:, i].argmax(-1) == label).mean())
            yield Prediction(self.classes[label], dict(zip(self.classes, map(float, of), strict=True)), agreement)

    def logits(self, utterances: Sequence[tuple[Float32[np.ndarray, "_ _"], ...]]) -> Float64[np.ndarray, "r n c"]:
        """What each head makes of the features of some utterances, one array [t, d] for each of its inputs."""
        found, first = [], 0
        while first < len(utterances):
            left = len(utterances) - first
            size = next((size for size in BATCHES if size >= left), BATCHES[-1])
            some = utterances[first : first + size]
            inputs = tuple(
                self._frames([one[i] for one in some], size, extractor.of, self.longest[i])
                for i, extractor in enumerate(self.extractors)
            )
            of = _logits(self.module, self.members.params, self.members.standards, inputs)
            found.append(np.asarray(of, np.float64)[:, : len(some)])
            first += size
        return np.concatenate(found, 1)

    def _frames(self, of: Sequence[np.ndarray], size: int, kind: str, longest: int) -> Frames:
        # The last one fills up the batch. Padded as in training, or to a power of two times that.
        average = self.average if kind == "audio" else 1
        arrays = [averaged(frames, average) for frames in of]
        arrays += [arrays[-1]] * (size - len(arrays))
        counts = [len(frames) for frames in arrays]
        width = next(longest << power for power in count() if longest << power >= max(counts))
        x = np.stack([np.pad(frames, ((0, width - len(frames)), (0, 0))) for frames in arrays])
        return HEADS[self.head].summarise(Frames(x, frame_mask(np.array(counts), width)))

    def member(self, fold: int | None, seed: int | None) -> "Recogniser":
        """The head of one fold and seed alone, as it was scored, uncalibrated. Raises CallError where there is none."""
        for number, name in enumerate(self.members.names):
            if (name["fold"], name["seed"]) == (fold, seed):
                return dataclasses.replace(self, members=self.members.only(number), temperature=1.0)
        folds, seeds = (sorted({str(name[what]) for name in self.members.names}) for what in ("fold", "seed"))
        raise CallError(f"no head of --fold {fold} --seed {seed}: folds are {', '.join(folds)}, seeds {', '.join(seeds)}")


def _blocks(items: int) -> Iterator[range]:
    # The first ones are short, so that something can be seen soon.
    first, size = 0, 16
    while first < items:
        yield range(first, min(first + size, items))
        first, size = first + size, min(4 * size, 512)


def _texts(extractor: Extractor, items: Sequence[Item]) -> Iterator[Entry]:
    # All at once: words cost little beside sound.
    said = [Utterance(f"{i}", Path(item.name), "", text=item.text) for i, item in enumerate(items)]
    contents = extractor.contents(said)
    tasks = list(dict(contents.values()).items())
    found = {e.content: e for part in extractor.compute(extractor.plan(tasks, 1), 1, False) for e in part} if tasks else {}
    for one in said:
        yield found[contents[one.id][0]] if one.id in contents else Entry("", None, reason=extractor.why_none(one))


@partial(jax.jit, static_argnames="model")
def _logits(
    model: nn.Module, params: Any, standards: tuple[Standard, ...], inputs: tuple[Frames, ...]
) -> Float[Array, "r b c"]:
    def one(mine: tuple[Any, tuple[Standard, ...]]) -> Array:
        read = standardised(inputs, mine[1], np.arange(len(inputs[0].x)))
        return model.apply({"params": mine[0]}, *read, train=False)

    return jax.lax.map(one, (params, standards))


def save(
    path: Path,
    config: Mapping[str, Any],
    features: Sequence[extract.Features],
    longest: Sequence[int],
    runs: Sequence[Run],
    trained: Trained,
    final: Trained | None,
    summary: Mapping[str, Any],
    card: Mapping[str, Any],
) -> None:
    """Write a model with its card, in place of one that was there.

    `longest` has the frames of the longest utterance for each of `features`; `final` is the head on all data, if there is one.
    """
    params = {"folds": _members(trained)} | ({"all": _members(final)} if final else {})
    about = {
        "config": dict(config),
        "classes": list(summary["classes"]),
        "members": [{"fold": run.fold, "seed": run.seed} for run in runs],
        "final": final is not None,
        "temperature": summary["calibration"]["temperature"],
        "longest": [int(frames) for frames in longest],
        "inputs": [
            {"of": one.of, "name": one.extractor.name, "random": one.extractor.random, "settings": dict(one.extractor.settings)}
            for one in features
        ],
        "weights_at": _place(config),
        "summary": dict(summary),
        "card": dict(card),
    }
    if path.exists():
        shutil.rmtree(path)
    checkpoint.save(path, KIND, params, about, one_host=True)
    (path / cards.FILE).write_text(cards.recogniser(about), encoding="utf-8", errors="backslashreplace")


def _members(trained: Trained) -> dict[str, Any]:
    standards = {f"{i}": {"mean": one.mean, "scale": one.scale} for i, one in enumerate(trained.standards)}
    return {"params": trained.params, "standards": standards}


def _place(config: Mapping[str, Any]) -> str | None:
    # Where the encoder lay, for those who move the model alone.
    weights = config["weights"]
    own = config["features"] != "wav2vec" or weights in wav2vec.SHIPPED_NAMES or weights.startswith("random")
    return None if own else str(checkpoint.absolute(weights))


def is_there(path: Path, final: bool) -> bool:
    """Whether a whole model lies there, with a head on all data where that is asked for."""
    try:
        return checkpoint.about(path, KIND)["final"] or not final
    except CallError:
        return False


def load(
    path: str | os.PathLike,
    *,
    final: bool = False,
    weights: str | None = None,
    text_model: str | None = None,
    cache: Path | None = None,
) -> Recogniser:
    """A model that `jaxser.cv --save` wrote, from its folder or from the run folder around it. Paths may be remote (gs://).

    Its prediction is the mean of all folds' and seeds' heads; with `final` that of the one trained on all data. `weights` and
    `text_model` say where the encoders lie today; other ones than it was trained with are refused. Raises CallError for what
    is no model, WorkError for a damaged one.
    """
    folder = checkpoint.absolute(path)
    folder = folder / "model" if (folder / "model").exists() else folder
    params, about = checkpoint.load(folder, KIND)
    if odd := misfit(about, ABOUT_KINDS):
        raise WorkError(f"{path} is damaged: what it says of itself is not whole, {odd}")
    try:
        config = extract.Config(**_of_features(about["config"]))
        changes = {name: value for name, value in (("weights", weights), ("text_model", text_model)) if value is not None}
        if weights is None and about["weights_at"]:
            changes["weights"] = about["weights_at"]
        config = dataclasses.replace(config, cache=cache or user_cache_path("jaxser"), **changes)
        head = HEADS[about["config"]["head"]]
        module = head.module(len(about["classes"]), about["config"]["dropout"])
        names = tuple({"fold": one["fold"], "seed": one["seed"]} for one in about["members"])
        members = {"folds": names, "all": ({"fold": None, "seed": 0},)}
        longest, temperature = tuple(about["longest"]), float(about["temperature"])
        if final and "all" not in params:
            raise CallError(f"{path} has no head trained on all data: train it with jaxser.cv --final")
        which = "all" if final else "folds"
        mine = _loaded(members[which], params[which], len(about["inputs"]))
        average = about["config"]["average_frames"] if head.average else 1
        if not temperature > 0 or not all(0 < frames < MOST_FRAMES for frames in longest):
            raise ValueError(f"temperature {temperature}, longest {longest}")
        if not [one["of"] for one in about["inputs"]] == list(head.inputs) or len(longest) != len(head.inputs):
            raise ValueError(f"a {about['config']['head']} of {len(longest)} inputs")
    except CallError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise WorkError(f"{path} is damaged: what it says of itself is not whole ({str(error)[:300]!r})") from None
    extractors = tuple(extract.extractors_of(config, head.inputs, keep=True))
    for extractor, known in zip(extractors, about["inputs"], strict=True):
        if differing := differences(known["settings"], extractor.settings):
            flag = "--weights" if known["of"] == "audio" else "--text-model"
            raise CallError(f"the features at hand are not those that {path} was trained on ({differing}): give {flag}")
    model = Recogniser(
        tuple(about["classes"]), mine, temperature, about["config"]["head"], module, longest, average, extractors, about
    )
    _demand_fitting(path, model)
    return model


def _demand_fitting(path: str | os.PathLike, model: Recogniser) -> None:
    # Whether its heads can read what its extractors give: traced with a frame of each, and not computed.
    try:
        frames = [np.zeros((1, extractor.settings["width"]), np.float32) for extractor in model.extractors]
        inputs = tuple(
            model._frames([x], 1, extractor.of, longest)
            for x, extractor, longest in zip(frames, model.extractors, model.longest, strict=True)
        )
        shape = jax.eval_shape(partial(_logits, model.module), model.members.params, model.members.standards, inputs).shape
    except (FlaxError, ValueError, TypeError, ArithmeticError, AttributeError, KeyError) as error:
        shape = " ".join(str(error).split())[:300]
    if shape != (len(model.members.names), 1, len(model.classes)):
        raise WorkError(f"{path} is damaged: its heads are not a {model.head} for {len(model.classes)} classes ({shape})")


def _of_features(config: Mapping[str, Any]) -> dict[str, Any]:
    # What of a run's configuration says how features are made; its corpus stays behind.
    left = {"corpus", "root", "classes", "strict", "jobs", "cache", "coordinator", "processes", "process"}
    return {f.name: config[f.name] for f in dataclasses.fields(extract.Config) if f.name not in left}


def _loaded(names: tuple[Mapping[str, Any], ...], tree: Mapping[str, Any], inputs: int) -> Members:
    standards = tuple(Standard(**tree["standards"][f"{i}"]) for i in range(inputs))
    params, standards = jax.tree.map(jnp.asarray, (tree["params"], standards))
    return Members(names, params, standards)
