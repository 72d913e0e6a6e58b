"""What labels new speech: the heads of a cross-validation, the features they read, and the mean of what they say."""

import dataclasses
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count, tee
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax.errors import FlaxError
from jaxtyping import Array, Float, Float32, Float64
from tqdm import tqdm

from jaxser import audio
from jaxser.audio import AudioError
from jaxser.calibration import log_mean, softmax
from jaxser.command import workers
from jaxser.corpora import Utterance
from jaxser.errors import CallError
from jaxser.extractor import Extractor, Task
from jaxser.heads import HEADS
from jaxser.standards import Standard, standardised
from jaxser.store import Entry, Frames, averaged, frame_mask

BATCHES = (1, 8, 64)
"""How many utterances a head reads at once: each size is compiled, for one recording must not wait for the work of many."""


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
    temperature_of_mean: float
    """What the logarithm of their mean is divided by where there are several: one alone has its temperature, and no mean."""
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
        entries = zip(*(_entries(extractor, items, blocks, workers(jobs)) for extractor in self.extractors), strict=True)
        hidden = not (bar and sys.stderr.isatty())
        with tqdm(total=sum(map(len, blocks)), desc="labels", unit="item", disable=hidden, leave=False) as shown:
            for block in blocks:
                some = [next(entries) for _ in block]
                reasons = [next((e.reason for e in entry if e.frames is None), "") for entry in some]
                usable = [entry for entry, reason in zip(some, reasons, strict=True) if not reason]
                found = iter(self._predictions(usable))
                shown.update(len(block))
                yield from [reason or next(found) for reason in reasons][max(0, skip - block.start) :]

    def _predictions(self, entries: Sequence[tuple[Entry, ...]]) -> Iterator[Prediction]:
        if not entries:
            return
        logits = self.logits([tuple(e.frames for e in entry) for entry in entries])
        mean = log_mean(logits, self.temperature)
        probabilities = softmax(mean, self.temperature_of_mean if len(logits) > 1 else 1.0)
        for i, of in enumerate(probabilities):
            label = int(mean[i].argmax())
            agreement = float((logits[:, i].argmax(-1) == label).mean())
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

    def misfit(self) -> str:
        """Why its heads cannot read what its extractors give; empty where they can. Traced with one frame, and not computed."""
        try:
            inputs = tuple(
                self._frames([np.zeros((1, extractor.settings["width"]), np.float32)], 1, extractor.of, longest)
                for extractor, longest in zip(self.extractors, self.longest, strict=True)
            )
            shape = jax.eval_shape(partial(_logits, self.module), self.members.params, self.members.standards, inputs).shape
        except (FlaxError, ValueError, TypeError, ArithmeticError, AttributeError, KeyError) as error:
            shape = " ".join(str(error).split())[:300]
        if shape == (len(self.members.names), 1, len(self.classes)):
            return ""
        return f"its heads are not a {self.head} for {len(self.classes)} classes ({shape})"

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


def _entries(extractor: Extractor, items: Sequence[Item], blocks: Sequence[range], jobs: int) -> Iterator[Entry]:
    # Of each item of these blocks, in order. A block is computed whole and by itself, so that none before it changes a bit, and
    # planned when its turn is near, for that may read the header of every file in it.
    asked, known = tee(_contents(extractor, items, block) for block in blocks)
    parts = (part for tasks in asked for part in extractor.plan(list(dict(tasks.values()).items()), jobs))
    found = extractor.compute(parts, jobs, False)
    for block, tasks in zip(blocks, known, strict=True):
        wanted, there = {content for content, _ in tasks.values()}, {}
        while len(there) < len(wanted):
            there |= {entry.content: entry for entry in next(found)}
        for i in block:
            if f"{i}" in tasks:
                yield there[tasks[f"{i}"][0]]
            else:
                yield Entry("", None, reason=extractor.why_none(_utterance(items, i)))


def _contents(extractor: Extractor, items: Sequence[Item], block: range) -> dict[str, Task]:
    # By number, what of each item is to be read; sound is not stored, and so has no digest.
    if extractor.of == "text":
        return extractor.contents([_utterance(items, i) for i in block])
    return {f"{i}": (f"{i}", items[i].source) for i in block}


def _utterance(items: Sequence[Item], i: int) -> Utterance:
    return Utterance(f"{i}", Path(items[i].name), "", text=items[i].text)


@partial(jax.jit, static_argnames="model")
def _logits(
    model: nn.Module, params: Any, standards: tuple[Standard, ...], inputs: tuple[Frames, ...]
) -> Float[Array, "r b c"]:
    def one(mine: tuple[Any, tuple[Standard, ...]]) -> Array:
        read = standardised(inputs, mine[1], np.arange(len(inputs[0].x)))
        return model.apply({"params": mine[0]}, *read, train=False)

    return jax.lax.map(one, (params, standards))
