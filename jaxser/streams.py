"""Frames that do not fit on a device: the rows that the next updates need, read from disk into a table of their own."""

import numpy as np
from jaxtyping import Int32

from jaxser import train
from jaxser.errors import CallError
from jaxser.store import Frames

KINDS = (np.float32, np.bool_)
"""Of frames and of their mask."""


def rows_of_a_table(inputs: tuple[Frames, ...], limit: float, batch_size: int) -> int:
    """How many rows of frames a device has room for at a time. Raises CallError where it is no batch."""
    # Two tables lie on a device: one that is trained on, and the next.
    a_row = sum(frames.x.nbytes / len(frames.x) for frames in inputs)
    room, least = int(limit / 2 / a_row), least_rows(batch_size)
    if room < least:
        raise CallError(
            f"frames may take {limit / 2**30:.3g} GiB on a device, and two tables of {least} utterances need "
            f"{2 * least * a_row / 2**30:.3g}: give as much with --memory"
        )
    return room


def least_rows(batch_size: int) -> int:
    """Of a table for one run. A call has room for two batches at the least: for one alone XLA compiles in another way."""
    return max(2 * batch_size, train.PREDICT_BATCH)


def table_of(
    inputs: tuple[Frames, ...], labels: Int32[np.ndarray, " n"], rows: Int32[np.ndarray, "r ..."], count: int
) -> tuple[tuple[tuple[Frames, ...], np.ndarray], Int32[np.ndarray, "r ..."]]:
    """The frames and labels that some rows need, and the same rows by their place among these; -1 stays.

    For each of `count` devices, which share the leading axis of `rows` out among them, a table of its own, all of one size.
    A larger row keeps the larger number.
    """
    places, size = np.empty_like(rows), min(len(labels), rows.size // count)
    empty = [[np.zeros((count, size, *of.shape[1:]), kind) for of, kind in zip(f, KINDS, strict=True)] for f in inputs]
    tables = tuple(Frames(*of) for of in empty)
    of_tables = np.zeros((count, size), labels.dtype)
    blocks = np.split(np.arange(len(rows)), count)
    for device, block in enumerate(blocks):
        mine = rows[block]
        needed = np.unique(mine[mine >= 0])
        places[block] = np.where(mine < 0, -1, np.searchsorted(needed, mine))
        of_tables[device, : len(needed)] = labels[needed]
        for table, f in zip(tables, inputs, strict=True):
            table.x[device, : len(needed)], table.mask[device, : len(needed)] = f.x[needed], f.mask[needed]
    return (tables, of_tables), places
