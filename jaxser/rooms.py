"""For a head that computes no padding: for how many frames to make room, so that every batch finds one that it fits in."""

from collections.abc import Sequence

import numpy as np

from jaxser.folds import batches
from jaxser.store import Frames
from jaxser.train import Run

ROOMS = 16
"""Into how many steps the padded size of a batch is cut for a head that computes no padding. Each that occurs is compiled, in
about half a second."""

SMALL = 256
"""Frames of a padded batch up to which that does not pay."""


def rooms_of(frames: Frames, runs: Sequence[Run], batch_size: int) -> tuple[int, ...]:
    """For a head that computes no padding: how many frames to make room for, so that each batch of these runs finds one that
    fits, ascending; none for small batches. All are whole steps of 1/ROOMS of a batch's padded size, whichever runs there
    are."""
    if batch_size * frames.mask.shape[1] <= SMALL:
        return ()
    counts, unit = np.asarray(frames.mask).sum(1), -(-batch_size * frames.mask.shape[1] // ROOMS)
    needed: set[int] = set()
    for r in runs:
        for start in range(0, r.updates, 4096):
            stop = min(r.updates, start + 4096)
            rows = batches(r.train, batch_size, start, stop, r.seed, r.fold, r.train_size)
            rows = np.where(rows < 0, rows.max(1, keepdims=True), rows)  # as train.advance fills up a short batch
            needed |= set((-(-counts[rows].sum(1) // unit)).tolist())
    return tuple(unit * steps for steps in sorted(needed))
