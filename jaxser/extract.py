"""Features of a whole corpus into a store: each content once, in parallel, in whole parts."""

import hashlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import islice
from multiprocessing.pool import IMapIterator, Pool
from pathlib import Path
from typing import Any

from tqdm import tqdm

from jaxser import audio, lld
from jaxser.corpora import Corpus, Utterance
from jaxser.digests import digests
from jaxser.errors import WorkError
from jaxser.store import Entry, Store, open_store, write_part

PART = 128
"""Utterances a part: what a kill can lose, some seconds of work."""


def lld_settings(
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


def extract(
    corpus: Corpus, settings: Mapping[str, Any], cache: Path, jobs: int = 0, strict: bool = False
) -> tuple[Store, dict[str, str], tuple[tuple[str, str], ...]]:
    """Make sure that the store holds the features of every utterance, reading only audio that it has never seen.

    Returns the store, the content digest of each usable utterance by id, and (id, reason) of the others. With `strict`
    the first unusable file ends the work with a WorkError. `jobs` is the number of processes, 0 for one a core.
    """
    store = open_store(cache, settings)
    if store.damaged:
        print(f"{store.folder}: {len(store.damaged)} damaged parts are made anew", file=sys.stderr)
    contents = digests((u.path for u in corpus.utterances), cache / "digests.json")
    todo: dict[str, Utterance] = {}
    for utterance in corpus.utterances:
        content = contents.get(utterance.path)
        if content and content not in store.rows and content not in store.failed:
            todo.setdefault(content, utterance)
    if todo:
        _extract_missing(store, todo, settings, jobs)
        store = open_store(cache, settings)
    usable, left_out = {}, []
    for utterance in corpus.utterances:
        content = contents.get(utterance.path)
        if content in store.rows:
            usable[utterance.id] = content
            continue
        reason = store.failed.get(content) or _why_unreadable(utterance.path)
        if strict:
            raise WorkError(f"{utterance.path}: {reason} (without --strict it would be left out and counted)")
        left_out.append((utterance.id, reason))
    if not usable:
        raise WorkError(f"none of {len(left_out)} files can be used; the first one, {left_out[0][0]}: {left_out[0][1]}")
    return store, usable, tuple(left_out)


def _extract_missing(store: Store, todo: Mapping[str, Utterance], settings: Mapping[str, Any], jobs: int) -> None:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    work = partial(_lld_of, settings=settings)
    tasks = [(content, utterance.path) for content, utterance in todo.items()]
    with (
        _workers(min(jobs or cores or 1, len(tasks))) as pool,
        tqdm(total=len(tasks), desc="lld", unit="file", disable=not sys.stderr.isatty(), leave=False) as bar,
    ):
        for part in _in_parts(_counted(_watched(pool.imap(work, tasks)), bar)):
            write_part(store, part)


@contextmanager
def _workers(count: int) -> Iterator[Pool]:
    # Spawned, not forked: threads of jax do not survive a fork. Ctrl-C is for this process alone, which ends the others: they
    # inherit that it is blocked, and one that comes meanwhile is delivered to us once the pool can be taken down in order.
    blocked = {signal.SIGINT} if hasattr(signal, "pthread_sigmask") else set()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, blocked) if blocked else set()
    try:
        with multiprocessing.get_context("spawn").Pool(count) as pool:
            if blocked:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
            yield pool
    finally:
        if blocked:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _watched(entries: IMapIterator) -> Iterator[Entry]:
    # A pool quietly replaces a worker that dies and never gives back its task: we would wait for ever.
    workers = {child.pid for child in multiprocessing.active_children()}
    while True:
        try:
            yield entries.next(timeout=1.0)
        except multiprocessing.TimeoutError:
            if {child.pid for child in multiprocessing.active_children()} != workers:
                raise WorkError("a worker process died (killed, or out of memory); what is done is kept: run again") from None
        except StopIteration:
            return


def _lld_of(task: tuple[str, Path], settings: Mapping[str, Any]) -> Entry:
    content, path = task
    try:
        waveform = audio.load(path, settings["max_seconds"], settings["crop"])
        frames = lld.lld(waveform, settings["window_ms"], settings["hop_ms"]).astype("float32")
    except audio.AudioError as error:
        return Entry(content, None, reason=str(error))
    sound = hashlib.sha256(waveform.tobytes()).hexdigest()
    return Entry(content, frames, sound, len(waveform) / audio.SAMPLE_RATE)


def _counted(entries: Iterable[Entry], bar: tqdm) -> Iterator[Entry]:
    seconds = 0.0
    for entry in entries:
        seconds += entry.seconds
        bar.update()
        bar.set_postfix_str(f"{seconds / max(bar.format_dict['elapsed'], 1e-9):.0f} s of audio a second", refresh=False)
        yield entry


def _in_parts(entries: Iterator[Entry]) -> Iterator[list[Entry]]:
    while part := list(islice(entries, PART)):
        yield part


def _why_unreadable(path: Path) -> str:
    try:
        audio.load(path)
    except (audio.AudioError, OSError) as error:
        return str(error)
    return "it changed while it was being read"
