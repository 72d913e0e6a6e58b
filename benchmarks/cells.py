"""What `benchmarks.train` and `benchmarks.growth` time: random frames with the lengths of a real corpus, runs on them, the work
of an update."""

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from benchmarks import torch_heads
from benchmarks.lengths import as_iemocap, as_ravdess
from jaxser import lld, train
from jaxser.aligned import DENSE, WIDTH
from jaxser.architecture import LARGE, NANO
from jaxser.heads import DROPOUT, HEADS, mlp_width
from jaxser.standards import Standard, moments, standardisation
from jaxser.store import Frames, frame_mask

HEADS_TIMED = ("mean", "meanmax", "attention", "mlp", "bilstm", "aligned")
CELLS = tuple(f"{head} {kind}" for head in HEADS_TIMED for kind in ("lld", "nano"))
"""Table 1's heads and the recurrent ones, each with both kinds of features."""

FOLDS, CLASSES = 5, 4
CROP_SECONDS = 5.0
TRAIN_SIZE = 500
"""Examples that a run trains on: Table 1's."""

WORDS, TEXT_FEATURES = 24, 384
"""The most words of an utterance, and their vectors' width: a small BERT's."""


def seconds_of(size: str) -> np.ndarray:
    """Lengths of the utterances of a corpus, cropped."""
    like = {"ravdess": as_ravdess, "iemocap": as_iemocap}[size]
    return np.minimum(like(np.random.default_rng(0)), CROP_SECONDS)


@dataclass(frozen=True)
class Cell:
    """A head with the features it reads, as Table 1 trains it."""

    head: str
    features: str
    """lld, nano or large: the last two are wav2vec's."""
    size: str = "ravdess"

    @property
    def name(self) -> str:
        """What it is called in the table."""
        return f"{self.head} {self.features}"

    @property
    def kind(self) -> str:
        """The kind of features as the commands know it."""
        return "lld" if self.features == "lld" else "wav2vec"

    @property
    def updates(self) -> int:
        """Of a whole run."""
        return HEADS[self.head].updates[self.kind]

    def corpus(self) -> tuple[tuple[Frames, ...], np.ndarray]:
        """What the head reads, and labels i32[n]."""
        seconds = seconds_of(self.size)
        if self.features == "lld":
            counts, width = 1 + ((seconds * 1000 - lld.WINDOW_MS) // lld.HOP_MS).astype(int), lld.WIDTH
        else:
            of = {"nano": NANO, "large": LARGE}[self.features]
            counts, width = np.array([of.frames(int(16_000 * s)) for s in seconds]), of.width[1]
        if average := HEADS[self.head].average:
            counts = -(-counts // average[self.kind])
        words = np.clip(np.round(seconds / CROP_SECONDS * WORDS), 1, WORDS).astype(int)
        kinds = {"audio": (counts, width), "text": (words, TEXT_FEATURES)}
        random = np.random.default_rng(1)
        found = []
        for kind in HEADS[self.head].inputs:
            counts, width = kinds[kind]
            mask = frame_mask(counts, int(counts.max()))
            x = np.where(mask[..., None], random.normal(3, 2, (*mask.shape, width)).astype(np.float32), 0)
            found.append(HEADS[self.head].summarise(Frames(x, mask)))
        return tuple(found), (np.arange(len(seconds)) % CLASSES).astype(np.int32)

    def runs(self, count: int, updates: int) -> list[train.Run]:
        """The first `count` runs: five folds of every seed."""
        rows = np.arange(len(seconds_of(self.size)))
        of = rows // CLASSES % FOLDS
        return [
            train.Run(i // FOLDS, i % FOLDS, TRAIN_SIZE, updates, rows[of != i % FOLDS][:TRAIN_SIZE], rows[of == i % FOLDS])
            for i in range(count)
        ]

    def twin(self) -> torch.nn.Module:
        """torch's module."""
        inputs, _ = self.corpus()
        widths = [frames.x.shape[1] * frames.x.shape[2] if HEADS[self.head].pool else frames.x.shape[2] for frames in inputs]
        return torch_heads.TWINS[self.head](*widths, CLASSES, DROPOUT)

    def gflop(self) -> float:
        """Nominal work of an update: two operations for each weight and valid frame, forward and twice backward, without the
        gradient of what the head reads."""
        inputs, _ = self.corpus()
        rows = [train.BATCH_SIZE * float(frames.mask.sum(1).mean()) for frames in inputs]
        width, b = inputs[0].x.shape[2], train.BATCH_SIZE
        first, later = partial(_layer, passes=2), partial(_layer, passes=3)

        def lstm(n: float, d: int, layer=first) -> float:
            return 2 * (layer(n, d, 4 * WIDTH) + later(n, WIDTH, 4 * WIDTH))

        classes = later(b, 2 * WIDTH, CLASSES)
        work = {
            "mean": lambda: first(b, width, CLASSES),
            "meanmax": lambda: first(b, 2 * width, CLASSES),
            "attention": lambda: 2 * first(rows[0], width, 1) + later(b, width, CLASSES),
            "mlp": lambda: _mlp(rows[0], width, b),
            "bilstm": lambda: (
                first(rows[0], width, DENSE) + later(rows[0], DENSE, DENSE) + lstm(rows[0], DENSE, later) + classes
            ),
            "text": lambda: lstm(rows[0], width) + classes,
            "aligned": lambda: (
                lstm(rows[0], width)
                + lstm(rows[1], TEXT_FEATURES)
                + later(rows[1], rows[0] / b, 2 * WIDTH)
                + lstm(rows[1], 4 * WIDTH, later)
                + classes
            ),
        }
        return work[self.head]()


def _layer(rows: float, into: float, out: float, passes: int) -> float:
    return 2e-9 * passes * rows * into * out


def _mlp(rows: float, width: int, batch: int) -> float:
    hidden = mlp_width(width, CLASSES)
    return _layer(rows, width, hidden, 2) + _layer(rows, hidden, hidden, 3) + _layer(batch, hidden, CLASSES, 3)


def standards_of(inputs: tuple[Frames, ...], runs: list[train.Run]) -> list[tuple[Standard, ...]]:
    """The scale of each run's training rows."""
    of_inputs = [moments(frames) for frames in inputs]
    by_fold = {run.fold: tuple(standardisation(of, run.train) for of in of_inputs) for run in runs[:FOLDS]}
    return [by_fold[run.fold] for run in runs]
