"""Descriptors of many files at once, in worker processes: one core does some 70 s of audio a second."""

import ctypes
import hashlib
import multiprocessing
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from itertools import islice
from threading import Lock
from typing import Any

from tqdm import tqdm

from jaxser import audio, lld
from jaxser.errors import WorkError
from jaxser.store import Entry

PART = 128
"""Utterances a part: what a kill can lose, some seconds of work."""

AHEAD = 256
"""Files that are given out before the first of them is done: what a long one may keep waiting."""

ALONE = 2.0
"""Seconds that this process works by itself before it starts others, which takes about as long: few files need no more."""


def settings(
    window_ms: float = lld.WINDOW_MS,
    hop_ms: float = lld.HOP_MS,
    max_seconds: float = audio.MAX_SECONDS,
    crop: audio.Crop = "first",
) -> dict[str, Any]:
    """Everything that fixes the descriptors of a file besides its bytes: the key of their store."""
    lld.check_window(window_ms, hop_ms)
    return {
        "extractor": "lld",
        "library": lld.VERSION,
        "width": lld.WIDTH,
        "sample_rate": audio.SAMPLE_RATE,
        "window_ms": float(window_ms),
        "hop_ms": float(hop_ms),
        "max_seconds": float(max_seconds),
        "crop": crop,
    }


Task = tuple[str, audio.Source]
"""A content by its digest, and where its sound comes from."""


def plan(tasks: Sequence[Task], jobs: int) -> list[list[Task]]:
    """Tasks in their order, cut into parts. `jobs` is not used."""
    return [list(tasks[first : first + PART]) for first in range(0, len(tasks), PART)]


def compute(parts: Iterable[list[Task]], jobs: int, bar: bool, settings: Mapping[str, Any]) -> Iterator[list[Entry]]:
    """The descriptors of the files, a part at a time. `jobs` is the number of processes, `bar` whether there is to be a bar.

    One process is this one, which also begins alone.
    """
    parts = list(parts)
    tasks = [task for part in parts for task in part]
    if not tasks:
        return
    hidden = not (bar and sys.stderr.isatty())
    with tqdm(total=len(tasks), desc="lld", unit="file", disable=hidden, leave=False) as shown:
        entries = _counted(_shared(partial(_lld_of, settings=settings), tasks, jobs), shown)
        for part in parts:
            yield list(islice(entries, len(part)))


def _shared(one: Callable[[Task], Entry], tasks: Sequence[Task], jobs: int) -> Iterator[Entry]:
    began, done = time.monotonic(), 0
    while done < len(tasks) and (min(jobs, len(tasks) - done) == 1 or time.monotonic() - began < ALONE):
        yield one(tasks[done])
        done += 1
    if done < len(tasks):
        with _workers(min(jobs, len(tasks) - done)) as pool:
            yield from _in_turn(pool, one, tasks[done:])


@contextmanager
def _workers(count: int) -> Iterator[ProcessPoolExecutor]:
    # Spawned, not forked: threads of jax do not survive a fork.
    pool = ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), _end_with, (os.getpid(),))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _in_turn(pool: Executor, one: Callable[[Task], Entry], tasks: Sequence[Task]) -> Iterator[Entry]:
    waiting: deque[Future[Entry]] = deque()
    try:
        for task in tasks:
            with _no_ctrl_c(), _without_main():  # of a spawning pool, only `submit` starts processes
                waiting.append(pool.submit(one, task))
            if len(waiting) > AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool:
        raise WorkError("a worker process died (killed, or out of memory); what is done is kept: run again") from None


@contextmanager
def _no_ctrl_c() -> Iterator[None]:
    # It is for this process alone, which ends the others. They inherit that it is blocked; one that comes meanwhile is
    # delivered to us afterwards.
    blocked = {signal.SIGINT} if hasattr(signal, "pthread_sigmask") else set()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, blocked) if blocked else set()
    try:
        yield
    finally:
        if blocked:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


_HIDDEN = Lock()


@contextmanager
def _without_main() -> Iterator[None]:
    # A spawned process runs the module of the command again before anything else, and that loads jax and all that trains.
    # Where the main module seems to come from nowhere, it has nothing to run. One thread at a time, or a second one would
    # take what the first has hidden for how it was.
    with _HIDDEN:
        here = vars(sys.modules["__main__"])
        kept = {name: here[name] for name in ("__spec__", "__file__") if name in here}
        here.update(dict.fromkeys(kept))
        try:
            yield
        finally:
            here.update(kept)


def _end_with(parent: int) -> None:
    # Where we are killed, our workers would each complain of a broken pipe. Other systems than Linux let them.
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(1)  # it was before


def _lld_of(task: Task, settings: Mapping[str, Any]) -> Entry:
    content, source = task
    try:
        waveform = audio.read(source, settings["max_seconds"], settings["crop"])
        frames = lld.lld(waveform, settings["window_ms"], settings["hop_ms"]).astype("float32")
    except audio.AudioError as error:
        return Entry(content, None, reason=str(error), passing=isinstance(error, audio.Unreachable))
    sound = hashlib.sha256(waveform.tobytes()).hexdigest()
    return Entry(content, frames, sound, len(waveform) / audio.SAMPLE_RATE)


def _counted(entries: Iterable[Entry], bar: tqdm) -> Iterator[Entry]:
    seconds = 0.0
    for entry in entries:
        seconds += entry.seconds
        bar.update()
        bar.set_postfix_str(f"{seconds / max(bar.format_dict['elapsed'], 1e-9):.0f} s of audio a second", refresh=False)
        yield entry
