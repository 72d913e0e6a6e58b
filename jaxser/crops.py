"""Which parts of unlabelled recordings every update of pretraining hears, and reading them ahead of their use.

An epoch hears of every recording as many crops as fit into it, side by side, from a start that is drawn anew each time: all of
a long one but less than a crop; one below the crop's length as it is. (fairseq takes one crop of each file an epoch and passes
over the rest.) Crops of like length share a batch, so that little of it is padding. Everything random follows from the seed and
the number of the epoch or update, never from what was done before: an update can be repeated without those ahead of it.
"""

import time
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int32

from jaxser import audio
from jaxser.command import workers
from jaxser.errors import WorkError
from jaxser.recordings import Recording

_EPOCH, _GAIN = 12, 13
"""Purposes of a random stream, so that no two share their numbers."""

LENGTHS = (1.0, 0.7, 0.5, 0.35, 0.25)
"""Padded lengths as shares of a full crop. Each is one more compilation; shorter recordings are padded to the last."""

WHOLE_SECONDS = 60.0
"""Up to here a recording is decoded whole and kept while memory allows; of a longer one only the crop is read."""

PAUSES = (0.0, 1.0, 4.0, 15.0)
"""Seconds before each further try to read a file that its disk did not give: other hosts wait half a minute for an update."""


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
        """How many batches an epoch has; the same for every one."""
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
    """A batch as the network takes it. A row that is empty or silent, or whose file could not be used, has length 0."""

    waveforms: Float32[np.ndarray, "b s"]
    lengths: Int32[np.ndarray, " b"]
    samples: int
    """How many the whole batch was planned to have, on all hosts."""


class Reader:
    """Reads the crops of batches ahead of their use, with threads, and keeps what it decoded while memory allows.

    `left_out` gathers, by path, why files that promised to be readable were not, or a part of a long one was not; the rows of
    these stay empty. It is for the report alone: what a batch hears never follows from it.
    """

    def __init__(
        self, recordings: Sequence[Recording], jobs: int = 0, memory: float = 4.0, gain: tuple[float, float] = (1.0, 1.0)
    ):
        """`memory` in GiB; `gain` is the range from which each crop's factor is drawn, evenly in decibels."""
        self.recordings, self.gain = recordings, gain
        self.left_out: dict[str, str] = {}
        self._room = int(memory * 2**30)
        self._kept: dict[int, np.ndarray] = {}
        self._silent: dict[int, bool] = {}
        self._jobs = workers(jobs)

    def read(self, batches: Iterable[Batch], seed: int, first: int = 0, host: int = 0, hosts: int = 1) -> Iterator[Read]:
        """The batches in their order; `first` is the number of the first update, from which gains are drawn.

        Of several hosts each reads its own rows, the first ones the first. Raises WorkError where a disk does not give a file.
        """
        with ThreadPoolExecutor(self._jobs, thread_name_prefix="read") as pool:
            ahead: deque[tuple[Batch, list[tuple[Future, Crop, np.float32]]]] = deque()
            try:
                for number, batch in enumerate(batches, first):
                    drawn = np.random.default_rng([_GAIN, seed, number]).uniform(*np.log(self.gain), batch.rows)
                    gains = np.exp(drawn).astype(np.float32)
                    rows = slice(host * batch.rows // hosts, (host + 1) * batch.rows // hosts)
                    mine = zip(batch.crops[rows], gains[rows], strict=False)  # there may be fewer crops than rows
                    ahead.append((batch, [(pool.submit(self._crop, crop, gain), crop, gain) for crop, gain in mine]))
                    if len(ahead) > 2:
                        yield self._together(*ahead.popleft(), hosts)
                while ahead:
                    yield self._together(*ahead.popleft(), hosts)
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def _together(self, batch: Batch, mine: Sequence[tuple[Future, Crop, np.float32]], hosts: int) -> Read:
        rows, samples = batch.rows // hosts, sum(c.samples for c in batch.crops)
        read = Read(np.zeros((rows, batch.length), np.float32), np.zeros(rows, np.int32), samples)
        for row, (future, crop, gain) in enumerate(mine):
            try:
                sound = self._patiently(future, crop, gain)
            except audio.AudioError as error:
                # Here, in the order of batches, and the first reason stays: threads come to their ends in any order.
                self.left_out.setdefault(str(self.recordings[crop.recording].path), str(error))
                continue
            read.waveforms[row, : len(sound)] = sound
            read.lengths[row] = len(sound)
        return read

    def _patiently(self, future: Future, crop: Crop, gain: np.float32) -> Float32[np.ndarray, " s"]:
        # Outside of the threads, so that Ctrl-C need not wait for the pauses.
        try:
            return future.result()
        except audio.Unreachable as error:
            reason = error
        for pause in PAUSES:
            time.sleep(pause)
            try:
                return self._crop(crop, gain)
            except audio.Unreachable as error:
                reason = error
        raise WorkError(
            f"{self.recordings[crop.recording].path} could not be read in {len(PAUSES) + 1} tries ({reason}): once it can be, "
            "the same command goes on from the last saved state; without it, training begins anew at another --out"
        )

    def _crop(self, crop: Crop, gain: np.float32) -> Float32[np.ndarray, " s"]:
        sound = self._sound(crop)
        if audio.silent(sound):
            return np.zeros(0, np.float32)  # nothing to predict here; the rest of the recording is as good as ever
        return sound * gain  # a new array: what is kept stays as it was decoded

    def _sound(self, crop: Crop) -> Float32[np.ndarray, " s"]:
        recording = self.recordings[crop.recording]
        if recording.samples > WHOLE_SECONDS * audio.SAMPLE_RATE:
            return self._part(crop)
        sound = self._kept.get(crop.recording)
        if sound is None:
            sound = audio.load(recording.path, max_seconds=0.0)
            if len(sound) < recording.samples - audio.SAMPLE_RATE // 10:
                seconds, promised = (n / audio.SAMPLE_RATE for n in (len(sound), recording.samples))
                raise audio.AudioError(f"cut short: {seconds:.2f} s, where its header promises {promised:.2f}")
            if sound.nbytes <= self._room:
                self._room -= sound.nbytes
                self._kept[crop.recording] = sound
        return sound[crop.start : crop.start + crop.samples]

    def _part(self, crop: Crop) -> Float32[np.ndarray, " s"]:
        path = self.recordings[crop.recording].path
        try:
            sound = audio.load_part(path, crop.start, crop.samples)
        except audio.Unreachable:
            raise
        except audio.AudioError as error:
            raise audio.AudioError(f"in part {error}") from None
        if audio.silent(sound):
            if crop.recording not in self._silent:
                self._silent[crop.recording] = self._silent_throughout(crop.recording)
            if self._silent[crop.recording]:
                raise audio.AudioError("silent: no part of it holds a sound")
        return sound

    def _silent_throughout(self, number: int) -> bool:
        # One with sound is read up to its first sound, one without to its end, once. What cannot be read is no silence.
        recording, step = self.recordings[number], round(WHOLE_SECONDS * audio.SAMPLE_RATE)
        try:
            starts = range(0, recording.samples, step)
            parts = (audio.load_part(recording.path, i, min(step, recording.samples - i)) for i in starts)
            return all(audio.silent(part) for part in parts)
        except audio.Unreachable:
            raise
        except audio.AudioError:
            return False
