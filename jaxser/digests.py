"""What a file holds, as a sha256 of its bytes; remembered by its state on disk so that no file is read twice.

The memory is one JSON file. As git's index does, it believes that a file is unchanged while its size, its times (to the
nanosecond) and its inode are; touching or copying a file only costs hashing it again.
"""

import hashlib
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from tqdm import tqdm

from jaxser.errors import CallError
from jaxser.files import json_of, locked, write_json

REMEMBERED = 60.0
"""Seconds from one time to the next at which what has been read is remembered: what a kill can lose."""


def file_digest(path: Path) -> str:
    """The sha256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def text_digest(text: str) -> str:
    """The sha256 of a text, in hex."""
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()  # names of files need not be UTF-8


def recalled(memory: Path, name: str, look: Callable[[], dict[str, Any]], others: Sequence[str] = ()) -> dict[str, Any]:
    """What `look` finds of the thing of that name, remembered in one JSON file. Where it raises CallError because the thing is
    gone, what it found before, under that name or one of the `others`: once features are stored, the weights that made them are
    no longer needed."""
    known = json_of(memory) or {}
    try:
        found = look()
    except CallError:
        for gone in (name, *others):
            if isinstance(known.get(gone), dict) and not Path(gone).exists():
                return known[gone]
        raise
    if known.get(name) != found:
        _remember(memory, {name: found})
    return found


def digests(paths: Iterable[Path], memory: Path) -> dict[Path, str]:
    """The content digest of every file that is there or was seen before; a path that is neither has no entry.

    A file that is gone keeps the digest it had: once its features are stored, the audio itself is no longer needed.
    """
    known = {name: entry for name, entry in (json_of(memory) or {}).items() if _is_entry(entry)}
    found, unread = {}, {}
    for path in paths:
        entry = known.get(str(path.absolute()))
        try:
            stat = path.stat()
        except (OSError, ValueError):  # ValueError for a NUL, which is in no file's name
            if entry:
                found[path] = entry[1]
            continue
        state = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
        if entry and entry[0] == state:
            found[path] = entry[1]
        else:
            unread[path] = state
    return found | _read(unread, memory)


def _read(states: Mapping[Path, list[int]], memory: Path) -> dict[Path, str]:
    # By several threads, which hash side by side. A file that changes after its state was taken is read again the next time.
    found, news, last = {}, {}, time.monotonic()
    pool = ThreadPoolExecutor(thread_name_prefix="digest")
    try:
        read = zip(states, pool.map(_digest_of, states), strict=True)
        bar = {"total": len(states), "desc": "digests", "unit": "file", "leave": False, "delay": 1.0}
        for path, digest in tqdm(read, **bar, disable=not sys.stderr.isatty()):
            if digest:
                found[path], news[str(path.absolute())] = digest, [states[path], digest]
            if time.monotonic() - last > REMEMBERED:
                _remember(memory, news)
                news, last = {}, time.monotonic()
    finally:
        pool.shutdown(cancel_futures=True)
        _remember(memory, news)
    return found


def _digest_of(path: Path) -> str | None:
    with suppress(OSError):
        return file_digest(path)
    return None


def _remember(memory: Path, news: Mapping[str, Any]) -> None:
    # Beside what others have remembered meanwhile, one writer at a time. Where it cannot be written, in a cache that belongs to
    # somebody else, files are read once more the next time.
    if not news:
        return
    with suppress(OSError), ExitStack() as writing:
        memory.parent.mkdir(parents=True, exist_ok=True)
        with suppress(OSError):  # it may be somebody else's, too
            locked(writing.enter_context(memory.with_name(f".{memory.name}.lock").open("a")), wait=True)
        write_json(memory, (json_of(memory) or {}) | news)


def _is_entry(entry: Any) -> bool:
    return isinstance(entry, list) and len(entry) == 2 and isinstance(entry[1], str)
