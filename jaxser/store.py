"""Frames on disk, addressed by what they were computed from, and in memory, padded, or read from there when they are asked for.

A store is a folder for one extractor with one set of settings. It holds parts; a part is a plain .npy of frames laid end to
end and a JSON file that says which content (sha256 of an audio file, or of a text) has which of them. The JSON is written
last and under its final name only when whole, so a part is there or it is not, whatever kills the writer.
"""

import io
import json
import math
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int
from numpy.typing import DTypeLike

from jaxser.digests import text_digest
from jaxser.errors import WorkError
from jaxser.files import begun, json_of, named, write_json

ALIGNMENT = 64
"""Bytes. An array that begins at a multiple of so many is used by jax on a CPU where it lies, by all devices; of any other each
makes a copy (`devices.on_all`)."""

STALE = 24 * 3600
"""Seconds after which a part that somebody began to write is nobody's."""


class Frames(NamedTuple):
    """Padded frames of n utterances, the valid ones of each first. Padding may hold any finite number: only `mask` says which
    frames there are."""

    x: Any
    """f32[n, t, d]: an array, or an `OnDisk` that gives one for the rows asked for."""
    mask: Any
    """bool[n, t]"""


@dataclass(frozen=True)
class Row:
    """Where the frames of one content lie, and what the audio, or the text, behind them was."""

    part: Path
    start: int
    count: int
    audio: str
    """sha256 of the decoded, cropped 16 kHz samples: equal for equal sound in different files. Empty for a text."""
    seconds: float
    words: tuple[str, ...] = ()
    """Of a text: what each frame stands for, a word or a piece of one."""
    cut: int = 0
    """Of a text: words or pieces past what the model takes, which have no frame."""


class Part(NamedTuple):
    """What one part holds, and the state on disk of the files that were read: size and time of each."""

    state: tuple[int, ...]
    rows: Mapping[str, Row]
    failed: Mapping[str, str]


@dataclass(frozen=True)
class Store:
    """An open store. `rows` has the contents that have frames, `failed` those that never will, with the reason."""

    folder: Path
    width: int
    rows: Mapping[str, Row]
    failed: Mapping[str, str]
    damaged: tuple[str, ...] = ()
    """Names of parts whose frames do not fit their checksum; what they held counts as not there."""
    parts: Mapping[str, Part] = field(default_factory=dict)
    """The others, by name."""


@dataclass(frozen=True)
class Entry:
    """What an extractor made of one content: frames f32[t, d], or None and the reason."""

    content: str
    frames: np.ndarray | None
    audio: str = ""
    seconds: float = 0.0
    reason: str = ""
    passing: bool = False
    """Whether the reason may be gone the next time: then it is not remembered."""
    words: tuple[str, ...] = ()
    cut: int = 0


def folder_of(cache: Path, settings: Mapping[str, Any]) -> Path:
    """The folder of the store for these settings. Any other value of any setting is another folder."""
    text = json.dumps(settings, sort_keys=True)
    return cache / "features" / f"{settings['extractor']}-{text_digest(text)[:16]}"


def open_store(cache: Path, settings: Mapping[str, Any], before: Store | None = None) -> Store:
    """Open, or begin, the store for these settings. Of one that was opened `before`, parts whose files are as they were then
    are not read again.

    Raises WorkError where the folder belongs to other settings, and OSError where a disk does not give what is there: that is
    no damage.
    """
    folder = folder_of(cache, settings)
    folder.mkdir(parents=True, exist_ok=True)
    provenance = folder / "provenance.json"
    described = json_of(provenance)
    if described is None:  # or damaged, as by a power cut: the folder's own name says what it is of
        write_json(provenance, settings)
    elif described != dict(settings):
        raise WorkError(f"{provenance} does not describe {settings['extractor']} with {settings}; delete {folder}")
    there = list(folder.iterdir())  # not `glob`, which may pass over a disk that does not answer
    for path in there:
        if path.name.startswith(".part-"):  # cut short by a kill; a young one may be another process's
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > STALE:
                    path.unlink()
    notes = sorted(path for path in there if path.match("part-*.json"))
    known = before.parts if before else {}
    with ThreadPoolExecutor(thread_name_prefix="checksum") as pool:
        found = list(pool.map(partial(_part, width=settings["width"], known=known), notes))
    parts = {note.stem: part for note, part in zip(notes, found, strict=True) if part}
    rows, failed = {}, {}
    for part in parts.values():
        rows |= part.rows
        failed |= part.failed
    damaged = tuple(note.stem for note in notes if note.stem not in parts)
    return Store(folder, settings["width"], rows, failed, damaged, parts)


def _part(note: Path, width: int, known: Mapping[str, Part]) -> Part | None:
    # None for what `write_part` has not written.
    frames = note.with_suffix(".npy")
    with suppress(FileNotFoundError, ValueError, KeyError, TypeError, AttributeError), named(frames):
        state = tuple(number for stat in (note.stat(), frames.stat()) for number in (stat.st_size, stat.st_mtime_ns))
        before = known.get(note.stem)
        return before if before and before.state == state else Part(state, *_read_part(note, width))
    return None


def _read_part(note: Path, width: int) -> tuple[dict[str, Row], dict[str, str]]:
    # Raises one of many things for a part that is damaged.
    part, frames = json_of(note), note.with_suffix(".npy")
    if _checksum(frames) != part["crc32"]:
        raise ValueError("other frames than were written")
    rows, place = {}, 0
    for content, (start, count, sound, seconds, *text) in part["rows"].items():
        words, cut = text or ((), 0)
        kinds = [type(value) for value in (start, count, sound, seconds, cut, *words)]
        if kinds != [int, int, str, float, int] + [str] * len(words) or start != place or count < 0:
            raise ValueError("rows that do not lie end to end")
        rows[content] = Row(frames, start, count, sound, seconds, tuple(words), cut)
        place += count
    with frames.open("rb") as file:
        np.lib.format.read_magic(file)
        shape, *_ = np.lib.format.read_array_header_1_0(file)
    if shape != (place, width) or not all(type(reason) is str for reason in part["failed"].values()):
        raise ValueError("rows of other frames")
    return rows, part["failed"]


def write_part(store: Store, entries: Sequence[Entry]) -> None:
    """Add one part of the entries that are to be remembered, if there are any.

    Its name comes from the contents in it, so the same work always makes the same files, and no other work makes them.
    """
    entries = [e for e in entries if not e.passing]
    if not entries:
        return
    name = "part-" + text_digest("\n".join(e.content for e in entries))[:16]
    good = [e for e in entries if e.frames is not None]
    place, rows = 0, {}
    for entry in good:
        of_text = [list(entry.words), entry.cut] if entry.words else []
        rows[entry.content] = [place, len(entry.frames), entry.audio, round(entry.seconds, 6), *of_text]
        place += len(entry.frames)
    header, checksum = io.BytesIO(), 0
    shape = {"descr": "<f4", "fortran_order": False, "shape": (place, store.width)}
    np.lib.format.write_array_header_1_0(header, shape)
    with begun(store.folder / f"{name}.npy") as file:
        # One by one: a part is never in memory twice, nor read again for its checksum.
        for some in chain([header.getbuffer()], (np.ascontiguousarray(entry.frames, "<f4") for entry in good)):
            checksum = zlib.crc32(some, checksum)
            file.write(some)
    failed = {e.content: e.reason for e in entries if e.frames is None}
    write_json(store.folder / f"{name}.json", {"crc32": checksum, "rows": rows, "failed": failed})


def _checksum(path: Path) -> int:
    found = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            found = zlib.crc32(block, found)
    return found


def load_frames(store: Store, contents: Sequence[str], average: int = 1) -> Frames:
    """The frames of the named contents, in that order, padded with zeros to the longest: f32[n, t, d], bool[n, t]. They stay on
    disk until they are asked for. `average`: so many consecutive ones as their mean.

    Raises WorkError where one of them is not in the store.
    """
    if absent := [c for c in contents if c not in store.rows]:
        raise WorkError(f"{store.folder} has no frames for {len(absent)} of {len(contents)} utterances: extract first")
    x = OnDisk(tuple(store.rows[c] for c in contents), store.width, average)
    return Frames(x, frame_mask(x.counts, x.shape[1]))


@dataclass(frozen=True)
class OnDisk:
    """Frames f32[n, t, d] of n utterances that stay where they are: `x[rows]` reads those rows, `numpy.asarray(x)` all of them.

    With `average` above 1, that many consecutive frames are averaged into one as they are read; padding is zeros.
    """

    rows: tuple[Row, ...]
    width: int
    average: int = 1

    @cached_property
    def counts(self) -> Int[np.ndarray, " n"]:
        """How many frames each utterance has."""
        return np.array([-(-row.count // self.average) for row in self.rows], np.int64)

    @cached_property
    def shape(self) -> tuple[int, int, int]:
        """n, t, d."""
        return len(self.rows), int(self.counts.max(initial=0)), self.width

    @property
    def nbytes(self) -> int:
        """What all of it would take in memory."""
        return 4 * math.prod(self.shape)

    @cached_property
    def _begin(self) -> dict[Path, int]:
        # Where the frames of each part begin in it.
        return {path: np.load(path, mmap_mode="r").offset for path in {row.part for row in self.rows}}

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: Int[np.ndarray, " k"]) -> Float32[np.ndarray, "k t d"]:
        x = aligned((len(rows), *self.shape[1:]), np.float32)
        for number, out in zip(rows, x, strict=True):
            row = self.rows[number]
            # No part stays open: there may be more of them than files that a process may have open.
            frames = out[: row.count] if self.average == 1 else np.empty((row.count, self.width), np.float32)
            with row.part.open("rb", buffering=0) as file:
                file.seek(self._begin[row.part] + 4 * self.width * row.start)
                if file.readinto(frames.data) != frames.nbytes:
                    raise WorkError(f"{row.part} has become shorter since it was checked: run the command again")
            if self.average > 1:
                means = averaged(frames, self.average)
                out[: len(means)] = means
        return x

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[np.arange(len(self))]


def aligned(shape: Sequence[int], dtype: DTypeLike) -> np.ndarray:
    """Zeros that begin at a multiple of ALIGNMENT bytes, as `numpy.zeros` does not promise."""
    kind = np.dtype(dtype)
    size = math.prod(shape) * kind.itemsize
    room = np.zeros(size + ALIGNMENT, np.uint8)
    start = -room.ctypes.data % ALIGNMENT
    return room[start : start + size].view(kind).reshape(shape)


def averaged(frames: Float32[np.ndarray, "t d"], count: int) -> Float32[np.ndarray, "s d"]:
    """Each `count` consecutive frames of an utterance as their mean; where fewer are left at the end, the mean of those."""
    if count == 1:
        return frames
    whole = -(-len(frames) // count)
    blocks = np.pad(frames, ((0, whole * count - len(frames)), (0, 0))).reshape(whole, count, frames.shape[1])
    there = np.full(whole, count)
    there[-1:] -= whole * count - len(frames)
    return (blocks.sum(1) / there[:, None]).astype(np.float32)


def blocks(frames: Frames, size: int = 256) -> Iterator[Frames]:
    """The same frames, some rows at a time, so that those of a large corpus are never in memory all at once."""
    for first in range(0, len(frames.x), size):
        rows = np.arange(first, min(first + size, len(frames.x)))
        yield Frames(np.asarray(frames.x[rows]), np.asarray(frames.mask[rows]))


def frame_mask(counts: np.ndarray, width: int) -> Bool[np.ndarray, "n t"]:
    """True for the first `counts[i]` of `width` frames in row i."""
    return np.arange(width)[None] < np.asarray(counts)[:, None]
