"""wav2vec features of many files: decoded ahead by threads, sorted by length into batches, shared out among devices.

Files go longest first, in parts that depend on nothing but the files: the same work makes the same parts, also when it is
cut short and goes on. Each file is padded to one of a few lengths, so that little is compiled and little is padded. Its
neighbours in a batch move its features by rounding alone (1e-6).
"""

import hashlib
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from math import floor, log2
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from jaxser import audio, devices, wav2vec
from jaxser.architecture import Architecture
from jaxser.store import Entry

Layer = Literal["z", "c"]
Task = tuple[str, audio.Source]
"""A content by its digest, and where its sound comes from."""

REFERENCE = round(audio.MAX_SECONDS * audio.SAMPLE_RATE)
"""One of the padded lengths, in samples; the others follow from it. The default crop fills it exactly."""

UNKNOWN = 1_600
"""Samples of a file whose header promises less, or nothing."""


class Budget(NamedTuple):
    """How much goes to one device at once, and how much is lost at the most when the work is cut short."""

    batch_seconds: float
    batches_a_part: int
    """Of all devices together; fewer of long files."""
    lengths_an_octave: int
    """Padded lengths between one and its double. Each is one compilation, and on average half a step is padding."""
    mixed: bool = False
    """Whether rows that the files of a length leave empty go to shorter ones. A device computes them in any case, and no other
    way makes fewer batches."""


CPU = Budget(5.0, 16, 4)
"""A single long utterance keeps a few cores busy, and its activations are then nearest to fitting their caches."""

ACCELERATOR = Budget(320.0, 2, 1, mixed=True)
"""The first layer's activations are 6.5 MB a second of audio in float32. Half as much at once took 7 % longer on an H200; there
a compilation took 11 s, in which it hears five days of audio, so lengths are few."""


class Clip(NamedTuple):
    """One decoded file, or why there is none."""

    content: str
    waveform: np.ndarray | None
    name: str = ""
    """What people call it."""
    sound: str = ""
    reason: str = ""
    passing: bool = False


def settings(
    config: Architecture,
    digest: str,
    random: bool,
    layer: Layer = "c",
    precision: wav2vec.Precision = "float32",
    max_seconds: float = audio.MAX_SECONDS,
    crop: audio.Crop = "first",
) -> dict[str, Any]:
    """Everything that fixes the features of a file besides its bytes: the key of their store."""
    return {
        "extractor": "wav2vec",
        "layer": layer,
        "width": config.width["zc".index(layer)],
        "weights": "RANDOM" if random else "pretrained",
        "weights_sha256": digest,
        "precision": precision,
        "sample_rate": audio.SAMPLE_RATE,
        "max_seconds": float(max_seconds),
        "crop": crop,
    }


def plan(tasks: Sequence[Task], jobs: int, settings: Mapping[str, Any]) -> list[list[Task]]:
    """All files in parts, longest first. `jobs` is the number of threads that look at them."""
    budget = _budget()
    # Of a CPU any number of cores makes the same parts, which one, two and four devices fill.
    sharing = devices.MOST_CORES if budget is CPU else jax.local_device_count()
    return plan_parts(tasks, _samples(tasks, jobs, settings), budget, _longest(settings), sharing)


def _budget() -> Budget:
    return CPU if jax.default_backend() == "cpu" else ACCELERATOR


def _samples(tasks: Sequence[Task], jobs: int, settings: Mapping[str, Any]) -> list[int]:
    # As the headers promise them.
    with ThreadPoolExecutor(jobs, thread_name_prefix="header") as pool:
        counts = pool.map(audio.samples_in, [source for _, source in tasks])
        return [_cropped(count, settings) for count in counts]


def compute(
    parts: Iterable[list[Task]], jobs: int, bar: bool, settings: Mapping[str, Any], load: Callable[[], wav2vec.Encoder]
) -> Iterator[list[Entry]]:
    """The features of the files, a part at a time, each asked for while the two before it are at work.

    `jobs` is the number of threads that decode, `bar` whether there is to be a bar, which asks for all parts at once.
    """
    hidden = not (bar and sys.stderr.isatty())
    parts = parts if hidden else list(parts)
    pool = ThreadPoolExecutor(jobs, thread_name_prefix="decode")
    decoding = ([pool.submit(_decode, task, settings) for task in part] for part in parts)
    try:
        ahead: deque[list[Future[Clip]]] = deque(islice(decoding, 2))  # while the weights are read too
        if not ahead:
            return  # nor are the weights read
        encoder, budget = load(), _budget()
        with tqdm(
            total=0 if hidden else sum(_samples([task for part in parts for task in part], jobs, settings)) / audio.SAMPLE_RATE,
            desc="wav2vec",
            unit=" s of audio",
            bar_format="{l_bar}{bar}| {n:.0f}/{total:.0f} [{elapsed}<{remaining}, {rate_fmt}]",
            disable=hidden,
            leave=False,
        ) as shown:
            yield from _encoded(_decoded(ahead, decoding), encoder, settings["layer"], budget, _longest(settings), shown)
    finally:
        pool.shutdown(cancel_futures=True)


def plan_parts(
    tasks: Sequence[Task], samples: Sequence[int], budget: Budget, longest: int = 0, sharing: int = 1
) -> list[list[Task]]:
    """Tasks longest first, in parts of whole batches for `sharing` devices together: of all batches of a length only the last
    has room left, and of mixed ones only the very last. Taking away the first parts leaves the others as they are."""
    likely = [max(count, UNKNOWN) for count in samples]
    order = sorted(range(len(tasks)), key=lambda i: (-likely[i], tasks[i][0]))
    parts: list[list[Task]] = []
    room = 0.0
    for length, rows, numbers in _batches([likely[i] for i in order], budget, longest, sharing):
        if room <= 0:
            parts.append([])
            room = budget.batch_seconds * budget.batches_a_part * sharing * audio.SAMPLE_RATE
        parts[-1] += [tasks[order[number]] for number in numbers]
        room -= rows * length
    return parts


def padded_length(samples: int, an_octave: int, longest: int = 0) -> int:
    """The length to which so many samples are padded: the next of a geometric series with so many an octave, at most `longest`
    where that is given."""
    step = floor(an_octave * log2(samples / REFERENCE))
    while (length := round(REFERENCE * 2 ** (step / an_octave))) < samples:
        step += 1
    return min(length, longest) if longest else length


def padded_batches(
    waveforms: Sequence[np.ndarray], budget: Budget, longest: int = 0, sharing: int = 1
) -> Iterator[tuple[list[int], np.ndarray, np.ndarray]]:
    """Waveforms of like length together: their numbers, f32[b, s] filled up with zeros, and how many samples of each row count.
    All batches of a length have as many rows; those at the end of the last one may be empty, or hold shorter waveforms where
    the budget is mixed."""
    for length, rows, numbers in _batches([len(waveform) for waveform in waveforms], budget, longest, sharing):
        batch, lengths = np.zeros((rows, length), np.float32), np.zeros(rows, int)
        for row, number in enumerate(numbers):
            lengths[row] = len(waveforms[number])
            batch[row, : lengths[row]] = waveforms[number]
        yield numbers, batch, lengths


def _batches(samples: Sequence[int], budget: Budget, longest: int, sharing: int) -> Iterator[tuple[int, int, list[int]]]:
    # Of files of so many samples, longest first: how long and how many the rows of a batch are, and the numbers of its files.
    padded = [padded_length(count, budget.lengths_an_octave, longest) for count in samples]
    order = sorted(range(len(padded)), key=lambda number: -padded[number])
    done = 0
    while done < len(order):
        length = padded[order[done]]
        rows = _rows(length, budget) * sharing
        numbers = [number for number in order[done : done + rows] if budget.mixed or padded[number] == length]
        yield length, rows, numbers
        done += len(numbers)


def _rows(length: int, budget: Budget) -> int:
    # Of a batch, for one device.
    return max(1, round(budget.batch_seconds * audio.SAMPLE_RATE / length))


def _longest(settings: Mapping[str, Any]) -> int:
    return round(settings["max_seconds"] * audio.SAMPLE_RATE)


def _cropped(samples: int, settings: Mapping[str, Any]) -> int:
    return min(samples, _longest(settings) or samples)


def _decode(task: Task, settings: Mapping[str, Any]) -> Clip:
    content, source = task
    try:
        waveform = audio.read(source, settings["max_seconds"], settings["crop"])
    except audio.AudioError as error:
        return Clip(content, None, reason=str(error), passing=isinstance(error, audio.Unreachable))
    name = "" if isinstance(source, np.ndarray) else str(source.path if isinstance(source, audio.Span) else source)
    return Clip(content, waveform, name, hashlib.sha256(waveform).hexdigest())


@contextmanager
def _at_work_on(batch: Sequence[Clip]) -> Iterator[None]:
    # What a device has no memory for is told of with its longest file (`command.run_command`).
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        longest = max(batch, key=lambda clip: len(clip.waveform))
        seconds = len(longest.waveform) / audio.SAMPLE_RATE
        error.busy_with = f"{longest.name or 'a signal'} of {seconds:.0f} s, the longest in its batch"
        raise


def _decoded(ahead: deque[list[Future[Clip]]], more: Iterator[list[Future[Clip]]]) -> Iterator[list[Clip]]:
    while ahead:
        yield [clip.result() for clip in ahead.popleft()]
        ahead.extend(islice(more, 1))


def _encoded(
    parts: Iterable[list[Clip]], encoder: wav2vec.Encoder, layer: Layer, budget: Budget, longest: int, bar: tqdm
) -> Iterator[list[Entry]]:
    """The entries of each part, in the order of its clips. The device works on the next batch, also where that is of the next
    part, while one is fetched."""
    begun: deque[tuple[list[Clip], dict[str, Entry]]] = deque()
    under_way: deque[tuple[list[Clip], jax.Array, jax.Array, dict[str, Entry]]] = deque()

    def finish() -> None:
        batch, features, frames, entries = under_way.popleft()
        with _at_work_on(batch):
            features, frames = np.asarray(features), np.asarray(frames)
        for row, clip in enumerate(batch):
            seconds = len(clip.waveform) / audio.SAMPLE_RATE
            # Not copied: the padding of their batch stays in memory until they are written.
            entries[clip.content] = Entry(clip.content, features[row, : frames[row]], clip.sound, seconds)
            bar.update(seconds)

    def whole() -> Iterator[list[Entry]]:
        while begun and all(clip.content in begun[0][1] for clip in begun[0][0]):
            clips, entries = begun.popleft()
            yield [entries[clip.content] for clip in clips]

    for clips in parts:
        entries = _refused(clips, encoder.config.receptive_field[0])
        begun.append((clips, entries))
        sound = [clip for clip in clips if clip.content not in entries]
        for numbers, waveforms, lengths in padded_batches(
            [clip.waveform for clip in sound], budget, longest, encoder.mesh.size
        ):
            batch = [sound[number] for number in numbers]
            with _at_work_on(batch):
                z, c, frames = encoder(waveforms, lengths)
                features = z if layer == "z" else c
                features.copy_to_host_async()
            under_way.append((batch, features, frames, entries))
            if len(under_way) > 1:
                finish()
                yield from whole()
    while under_way:
        finish()
    yield from whole()


def _refused(clips: Sequence[Clip], shortest: int) -> dict[str, Entry]:
    # By content, of those that have no sound, or too little for a frame.
    entries = {}
    for clip in clips:
        if clip.waveform is None:
            entries[clip.content] = Entry(clip.content, None, reason=clip.reason, passing=clip.passing)
        elif len(clip.waveform) < shortest:
            what = f"{len(clip.waveform)} samples ({1000 * len(clip.waveform) / audio.SAMPLE_RATE:.0f} ms) of sound"
            entries[clip.content] = Entry(
                clip.content, None, reason=f"{what} are shorter than one frame of wav2vec, {shortest}"
            )
    return entries
