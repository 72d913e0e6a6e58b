"""What computes features of one kind, and how a store is filled with them, on one host or on several."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from jaxser import hosts
from jaxser.corpora import Utterance
from jaxser.errors import CallError, WorkError
from jaxser.store import Entry, Store, open_store, write_part

Task = tuple[str, Any]
"""A content by its digest, and the path or text itself."""

PATIENCE = 30.0
"""Seconds for which a network disk may hide from one host what another has written."""

WRITERS = 4
"""Parts that are written side by side while the next is computed, and how many are in memory for it at the most: checksums and
waiting for the disk take one thread longer than a GPU takes for the features."""


@dataclass(frozen=True)
class Extractor:
    """Features of one kind with one set of settings."""

    of: Literal["audio", "text"]
    settings: Mapping[str, Any]
    """Everything that fixes the frames of a content; the key of the store."""
    contents: Callable[[Sequence[Utterance]], dict[str, Task]]
    """Utterances -> by id the digest of what is to be read, and the path or text itself; without those that have nothing."""
    why_none: Callable[[Utterance], str]
    """Why an utterance has nothing to be read, or nothing that can be."""
    plan: Callable[[Sequence[Task], int], list[list[Task]]]
    """What `contents` gave of a whole corpus, and the number of workers -> the same in parts of some seconds of work each."""
    compute: Callable[[Iterable[list[Task]], int, bool], Iterator[list[Entry]]]
    """Some parts, the number of workers, and whether to draw a bar -> entries, in whole parts."""
    weights: str = ""
    """What people call the weights, where there are any; the settings name them by content."""
    known: Mapping[str, str] = field(default_factory=dict)
    """What people may want to know besides the settings, which fix it."""

    @property
    def name(self) -> str:
        """What people call the features."""
        layer = self.settings["layer"] if self.settings["extractor"] == "wav2vec" else ""
        words = [self.settings["extractor"], self.weights, layer, "RANDOM WEIGHTS" * self.random]
        return " ".join(word for word in words if word)

    @property
    def random(self) -> bool:
        """Whether the features come from weights that were never trained: to be said with every number made from them."""
        return self.settings.get("weights") == "RANDOM"


def fill(cache: Path, extractor: Extractor, contents: Mapping[str, Task], jobs: int) -> Store:
    """The store with all of these contents in it: what it lacks is computed, by each host its share, in whole parts.

    The parts are those of the whole corpus, without what is there already: however often the work was cut short, and on however
    many hosts, the same files make the same parts.
    """
    store = hosts.after_first(lambda: open_store(cache, extractor.settings))
    if store.damaged:
        hosts.say(f"{store.folder}: {len(store.damaged)} damaged parts are made anew, as far as this corpus still has them")
    tasks: dict[str, Any] = {}
    for content, source in contents.values():
        tasks.setdefault(content, source)

    def missing() -> list[list[str]]:
        if all(_settled(store, content) for content in tasks):
            return []
        plan = extractor.plan(list(tasks.items()), jobs)
        parts = [[content for content, _ in part if not _settled(store, content)] for part in plan]
        return [part for part in parts if part]

    parts = hosts.of_first(missing)  # before any of them writes
    unread = _compute(store, extractor, parts, tasks, jobs) if parts else set()
    # On another host than the first it may be more than what was computed now: all that it does not see yet.
    lacking = [content for content in tasks if not _settled(store, content) and content not in unread]
    return _reopened(cache, extractor, store, lacking) if lacking else store


def _compute(
    store: Store, extractor: Extractor, parts: Sequence[Sequence[str]], tasks: Mapping[str, Any], jobs: int
) -> set[str]:
    # Into the store. Gives what could not be read just now, on any host.
    here = [content in tasks and _is_there(tasks[content]) for part in parts for content in part]
    hosts.demand_agreement(here, f"the hosts do not find the same files: {SHARED_DISK}")
    mine = [[(content, tasks[content]) for content in part] for part in hosts.share(parts)]

    def work() -> list[str]:
        unread = []
        # Which of them is done first makes no difference: each is there or not, by itself.
        with ThreadPoolExecutor(WRITERS, thread_name_prefix="store") as writers:
            writing: deque[Future[None]] = deque()
            for part in extractor.compute(mine, jobs, hosts.first()):
                hosts.check_others()
                unread += [entry.content for entry in part if entry.passing]
                while writing and (len(writing) == WRITERS or writing[0].done()):
                    writing.popleft().result()
                writing.append(writers.submit(write_part, store, part))
            for written in writing:
                written.result()
        return unread

    return {content for some in hosts.tell(work) for content in some}


SHARED_DISK = "--root and --cache must lie on a disk that all of them share"


def _settled(store: Store, content: str) -> bool:
    return content in store.rows or content in store.failed


def _is_there(source: Any) -> bool:
    return not isinstance(source, Path) or source.exists()


def _reopened(cache: Path, extractor: Extractor, store: Store, added: Sequence[str]) -> Store:
    # Reading what is new may itself take longer than a disk hides it.
    store, began = open_store(cache, extractor.settings, store), time.monotonic()
    while absent := sum(not _settled(store, content) for content in added):
        if hosts.count() == 1:
            raise WorkError(f"{absent} of {len(added)} features just written are not whole in {store.folder}: run again")
        if time.monotonic() - began > PATIENCE:
            raise CallError(f"{absent} of {len(added)} new features, by other hosts, are not in {store.folder}: {SHARED_DISK}")
        time.sleep(1.0)
        store = open_store(cache, extractor.settings, store)
    return store
