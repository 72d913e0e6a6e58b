"""Unlabelled speech for pretraining: what lies in folders and CSV files, who is held out, and which crops an epoch hears.

An epoch hears every recording once from beginning to end: a long one as several crops side by side, from a start that is
drawn anew each time; one below the crop's length as it is. (fairseq takes one crop of each file an epoch and passes over the
rest.) Crops of like length share a batch, so that little of it is padding. Everything random follows from the seed and
the number of the epoch, never from what was done before: an update can be repeated without those ahead of it.
"""

import csv
import os
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int32

from jaxser import audio
from jaxser.errors import CallError

_HELD_OUT, _EPOCH, _GAIN = 11, 12, 13
"""Purposes of a random stream, so that no two share their numbers."""

LENGTHS = (1.0, 0.7, 0.5, 0.35, 0.25)
"""Padded lengths as shares of a full crop. Each is one more compilation; shorter recordings are padded to the last."""

WHOLE_SECONDS = 60.0
"""Up to here a recording is decoded whole and kept while memory allows; of a longer one only the crop is read."""


@dataclass(frozen=True)
class Recording:
    """One file. `samples` are those its header promises, at 16 kHz; `speaker` is None where nobody says who speaks."""

    path: Path
    samples: int
    speaker: str | None = None


@dataclass(frozen=True)
class Found:
    """What was found: usable by its header, and not."""

    recordings: tuple[Recording, ...]
    left_out: tuple[tuple[str, str], ...]
    """(path, reason)"""


def find(sources: Sequence[Path], shortest: int, jobs: int = 1) -> Found:
    """All recordings of folders (searched whole) and CSV files (a column `path`, relative to the CSV, and perhaps `speaker`).

    Those whose header cannot be read, or promises fewer than `shortest` samples, are left out with the reason. A file that
    is named twice counts once. Raises CallError for a source that is not there or names no recording.
    """
    speakers: dict[Path, str | None] = {}
    for number, source in enumerate(sources):
        listed = _listed(source)
        if not listed:
            raise CallError(f"--audio {source}: no recordings ({', '.join(audio.SUFFIXES)}) there")
        for path, speaker in listed:
            # Another source may call another person by the same name.
            speakers.setdefault(path, f"{number}:{speaker}" if speaker else None)
    paths = sorted(speakers)
    with ThreadPoolExecutor(jobs) as pool:
        promised = list(pool.map(audio.samples_promised, paths))
    recordings, left_out = [], []
    for path, samples in zip(paths, promised, strict=True):
        if samples >= shortest:
            recordings.append(Recording(path, samples, speakers[path]))
            continue
        short = f"{samples / audio.SAMPLE_RATE:.2f} s, shorter than the {shortest / audio.SAMPLE_RATE:.2f} s that training needs"
        left_out.append((str(path), short if samples else "not readable as audio"))
    return Found(tuple(recordings), tuple(left_out))


def _listed(source: Path) -> list[tuple[Path, str | None]]:
    if source.is_dir():
        found = (p for p in source.rglob("*") if p.suffix.lower() in audio.SUFFIXES and not p.name.startswith("."))
        return [(path.absolute(), None) for path in found]
    if not source.is_file():
        raise CallError(f"--audio {source}: no such folder or CSV file")
    if source.suffix.lower() != ".csv":
        raise CallError(f"--audio {source}: neither a folder nor a CSV file with the column path")
    try:
        with source.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file, strict=True))
    except (csv.Error, UnicodeDecodeError) as error:
        raise CallError(f"--audio {source}: not a CSV in UTF-8: {error}") from None
    if rows and not rows[0].get("path"):
        raise CallError(f"--audio {source}: no column path, or nothing in it")
    found = ((source.parent / row["path"].strip(), (row.get("speaker") or "").strip()) for row in rows if row.get("path"))
    return [(path.absolute(), speaker or None) for path, speaker in found]


def hold_out(
    recordings: Sequence[Recording], share: float, seed: int
) -> tuple[tuple[Recording, ...], tuple[Recording, ...], str]:
    """Recordings to train on, those held out (`share` of the sound or a little more), and what was held out in words.

    Where speakers are known, only known speakers are held out, each with all that they say: a file without a name might
    be a voice heard in training. Where none is known, single files. Raises CallError where nothing would be left to train on.
    """
    if not share:
        return tuple(recordings), (), "nothing"
    by_speaker: dict[str, list[Recording]] = defaultdict(list)
    for recording in recordings:
        if recording.speaker:
            by_speaker[recording.speaker].append(recording)
    units = [by_speaker[name] for name in sorted(by_speaker)] or [[recording] for recording in recordings]
    wanted, held = share * sum(r.samples for r in recordings), []
    for number, unit in enumerate(np.random.default_rng([_HELD_OUT, seed]).permutation(len(units))):
        if sum(r.samples for r in held) >= wanted:
            break
        held += units[unit]
    else:
        raise CallError(f"--held-out {share:g} takes every {'speaker' if by_speaker else 'file'}: ask for less, or 0")
    names = f"{number} speakers" if by_speaker else f"{number} files"
    out = set(held)
    return tuple(r for r in recordings if r not in out), tuple(r for r in recordings if r in out), names


class Crop(NamedTuple):
    """A part of one recording, in samples at 16 kHz."""

    recording: int
    start: int
    samples: int


class Batch(NamedTuple):
    """Crops padded to one length; there are `rows` rows, the last ones empty where crops are too few."""

    length: int
    rows: int
    crops: tuple[Crop, ...]


@dataclass(frozen=True)
class Plan:
    """Which crops every update hears. `crop` and `batch` count samples: of a full crop, and of all rows of a batch."""

    recordings: tuple[Recording, ...]
    crop: int
    batch: int
    seed: int
    devices: int = 1
    """Rows are a multiple of it."""

    def rows(self, length: int) -> int:
        """Rows of a batch of this padded length."""
        return max(1, round(self.batch / length / self.devices)) * self.devices

    def lengths(self) -> list[int]:
        """The padded lengths."""
        return [round(share * self.crop) for share in LENGTHS]

    def _crops(self, recording: Recording) -> int:
        return max(1, recording.samples // self.crop)

    def updates_an_epoch(self) -> int:
        """How many batches it takes to hear everything once; the same for every epoch."""
        lengths = self.lengths()
        counts = dict.fromkeys(lengths, 0)
        for recording in self.recordings:
            counts[_fitting(min(recording.samples, self.crop), lengths)] += self._crops(recording)
        return sum(-(-count // self.rows(length)) for length, count in counts.items())

    def epoch(self, number: int) -> list[Batch]:
        """The batches of one epoch."""
        random = np.random.default_rng([_EPOCH, self.seed, number])
        lengths, by_length = self.lengths(), defaultdict(list)
        for place, recording in enumerate(self.recordings):
            count, samples = self._crops(recording), min(recording.samples, self.crop)
            start = int(random.integers(recording.samples - count * samples + 1))
            by_length[_fitting(samples, lengths)] += [Crop(place, start + i * samples, samples) for i in range(count)]
        batches = []
        for length, crops in sorted(by_length.items()):
            rows, order = self.rows(length), random.permutation(len(crops))
            for first in range(0, len(crops), rows):
                batches.append(Batch(length, rows, tuple(crops[i] for i in order[first : first + rows])))
        return [batches[i] for i in random.permutation(len(batches))]

    def batches(self, first: int, stop: int) -> Iterator[Batch]:
        """The batches of updates `first` to `stop`, through as many epochs as that takes."""
        an_epoch = self.updates_an_epoch()
        while first < stop:
            number, skip = divmod(first, an_epoch)
            some = self.epoch(number)[skip : skip + stop - first]
            yield from some
            first += len(some)


def _fitting(samples: int, lengths: Sequence[int]) -> int:
    return min(length for length in lengths if length >= samples)


class Read(NamedTuple):
    """A batch as the network takes it. A row that is empty, or whose file could not be used, has length 0."""

    waveforms: Float32[np.ndarray, "b s"]
    lengths: Int32[np.ndarray, " b"]
    samples: int
    """How many the whole batch was planned to have, on all hosts."""


class Reader:
    """Reads the crops of batches ahead of their use, with threads, and keeps what it decoded while memory allows.

    `left_out` gathers, by path, why files that promised to be readable were not; their rows stay empty.
    """

    def __init__(self, recordings: Sequence[Recording], jobs: int = 0, memory: float = 4.0, gain: tuple[float, float] = (1, 1)):
        """`memory` in GiB; `gain` is the range from which each crop's factor is drawn, evenly."""
        self.recordings, self.gain = recordings, gain
        self.left_out: dict[str, str] = {}
        self._room = int(memory * 2**30)
        self._kept: dict[int, np.ndarray] = {}
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        self._jobs = jobs or cores or 1

    def read(
        self, batches: Iterable[Batch], seed: int, first: int = 0, host: int = 0, hosts: int = 1
    ) -> Iterator[Read]:
        """The batches in their order; `first` is the number of the first update, from which gains are drawn.

        Of several hosts each reads its own rows, the first ones the first.
        """
        with ThreadPoolExecutor(self._jobs, thread_name_prefix="read") as pool:
            ahead: deque[tuple[Batch, list[Future]]] = deque()
            try:
                for number, batch in enumerate(batches, first):
                    gains = np.random.default_rng([_GAIN, seed, number]).uniform(*self.gain, batch.rows)
                    rows = slice(host * batch.rows // hosts, (host + 1) * batch.rows // hosts)
                    mine = zip(batch.crops[rows], gains[rows], strict=False)  # there may be fewer crops than rows
                    ahead.append((batch, [pool.submit(self._crop, crop, np.float32(gain)) for crop, gain in mine]))
                    if len(ahead) > 2:
                        yield _together(*ahead.popleft(), hosts)
                while ahead:
                    yield _together(*ahead.popleft(), hosts)
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def _crop(self, crop: Crop, gain: np.float32) -> Float32[np.ndarray, " s"]:
        path = self.recordings[crop.recording].path
        try:
            return self._sound(crop)[: crop.samples] * gain  # a new array: what is kept stays as it was decoded
        except audio.AudioError as error:
            self.left_out[str(path)] = str(error)
            return np.zeros(0, np.float32)

    def _sound(self, crop: Crop) -> Float32[np.ndarray, " s"]:
        recording = self.recordings[crop.recording]
        if recording.samples > WHOLE_SECONDS * audio.SAMPLE_RATE:
            return audio.load_part(recording.path, crop.start, crop.samples)
        sound = self._kept.get(crop.recording)
        if sound is None:
            if str(recording.path) in self.left_out:
                raise audio.AudioError(self.left_out[str(recording.path)])
            sound = audio.load(recording.path, max_seconds=0)
            if len(sound) < recording.samples - audio.SAMPLE_RATE // 10:
                raise audio.AudioError(
                    f"{len(sound) / audio.SAMPLE_RATE:.2f} s, where its header promises {recording.samples / audio.SAMPLE_RATE:.2f}"
                )
            if sound.nbytes <= self._room:
                self._room -= sound.nbytes
                self._kept[crop.recording] = sound
        return sound[crop.start :]


def _together(batch: Batch, futures: Sequence[Future], hosts: int) -> Read:
    rows = batch.rows // hosts
    read = Read(np.zeros((rows, batch.length), np.float32), np.zeros(rows, np.int32), sum(c.samples for c in batch.crops))
    for row, future in enumerate(futures):
        sound = future.result()
        read.waveforms[row, : len(sound)] = sound
        read.lengths[row] = len(sound)
    return read


def hours(recordings: Sequence[Recording]) -> float:
    """How long they are in all."""
    return sum(r.samples for r in recordings) / audio.SAMPLE_RATE / 3600


def counted(left_out: Mapping[str, str] | Sequence[tuple[str, str]]) -> str:
    """How many files were left out, by reason, in one line."""
    reasons: dict[str, int] = defaultdict(int)
    for reason in dict(left_out).values():
        reasons[reason.split(":")[0].split(",")[-1].strip()] += 1
    return "; ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
