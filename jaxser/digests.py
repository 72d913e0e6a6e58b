"""What a file holds, as a sha256 of its bytes; remembered by its state on disk so that no file is read twice.

The memory is one JSON file. As git's index does, it believes that a file is unchanged while its size, its times (to the
nanosecond) and its inode are; touching or copying a file only costs hashing it again.
"""

import hashlib
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from jaxser.errors import CallError
from jaxser.files import json_of, write_json


def file_digest(path: Path) -> str:
    """The sha256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def text_digest(text: str) -> str:
    """The sha256 of a text, in hex."""
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()  # names of files need not be UTF-8


def recalled(memory: Path, name: str, look: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `look` finds of the thing of that name, remembered in one JSON file. Where it raises CallError because the thing is
    gone, what it found before: once features are stored, the weights that made them are no longer needed."""
    known = json_of(memory) or {}
    try:
        found = look()
    except CallError:
        if not isinstance(known.get(name), dict) or Path(name).exists():
            raise
        return known[name]
    if known.get(name) != found:
        _remember(memory, known | {name: found})
    return found


def digests(paths: Iterable[Path], memory: Path) -> dict[Path, str]:
    """The content digest of every file that is there or was seen before; a path that is neither has no entry.

    A file that is gone keeps the digest it had: once its features are stored, the audio itself is no longer needed.
    """
    known = {name: entry for name, entry in (json_of(memory) or {}).items() if _is_entry(entry)}
    found, news = {}, {}
    for path in paths:
        name = str(path.absolute())
        entry = known.get(name)
        try:
            stat = path.stat()
        except OSError:
            if entry:
                found[path] = entry[1]
            continue
        state = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
        if not entry or entry[0] != state:
            try:
                entry = news[name] = [state, file_digest(path)]
            except OSError:
                continue
        found[path] = entry[1]
    if news:
        _remember(memory, known | news)
    return found


def _remember(memory: Path, known: dict[str, Any]) -> None:
    # Where it cannot be written, in a cache that belongs to somebody else, files are read once more the next time.
    with suppress(OSError):
        memory.parent.mkdir(parents=True, exist_ok=True)
        write_json(memory, known)


def _is_entry(entry: Any) -> bool:
    return isinstance(entry, list) and len(entry) == 2 and isinstance(entry[1], str)
