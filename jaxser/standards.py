"""What makes features comparable in scale: mean and deviation of every feature, from the training rows of one run alone."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from jaxser.store import Frames, blocks


class Standard(NamedTuple):
    """What makes features comparable in scale: f32[d] each, from the training rows of one run and nothing else."""

    mean: Any
    scale: Any


class Moments(NamedTuple):
    """Per utterance and feature, over its valid frames: how many there are, their mean, their squared deviations from it."""

    count: np.ndarray
    mean: np.ndarray
    squares: np.ndarray


def moments(frames: Frames) -> Moments:
    """f64 moments of every utterance on its own, from which those of any set of training rows follow."""
    count = np.asarray(frames.mask).sum(1, dtype=np.float64)[:, None]
    mean, squares = [], []
    for some in blocks(frames):
        for row, k in zip(some.x, some.mask.sum(1), strict=True):
            mean.append(row[:k].mean(0, dtype=np.float64))
            squares.append(((row[:k] - mean[-1]) ** 2).sum(0))
    return Moments(count, np.stack(mean), np.stack(squares))


def standardisation(of: Moments, rows: Int[np.ndarray, " k"]) -> Standard:
    """Mean and standard deviation of all frames of the given rows (Chan et al., 1979); a constant feature has scale 1."""
    count, mean, squares = of.count[rows], of.mean[rows], of.squares[rows]
    total = count.sum()
    centre = (count * mean).sum(0) / total
    variance = (squares + count * (mean - centre) ** 2).sum(0) / total
    scale = np.sqrt(variance)
    constant = scale <= 1e-6 * np.maximum(np.abs(centre), 1e-6)
    return Standard(centre.astype(np.float32), np.where(constant, 1, scale).astype(np.float32))


def standardised(inputs: tuple[Frames, ...], standards: tuple[Standard, ...], rows: Int[Any, " b"]) -> tuple[Frames, ...]:
    """Some rows as a head reads them."""
    return tuple(Frames((f.x[rows] - s.mean) / s.scale, f.mask[rows]) for f, s in zip(inputs, standards, strict=True))
