"""Files that somebody will rely on: there whole or not at all, named where they cannot be written, one writer at a time."""

import csv
import io
import json
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO


@contextmanager
def begun(path: Path) -> Iterator[BinaryIO]:
    """A file to write to, which takes the place of the one at `path` when the block has ended well.

    Until then it is a hidden file beside it, named after this process, and at random. An OSError names `path`.
    """
    # Two containers that share a disk may each have a process of that number.
    part = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # or a power cut might leave the name to a file without its content
        part.replace(path)
    except BaseException as error:
        part.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = str(path)
        raise


@contextmanager
def named(path: Path) -> Iterator[None]:
    """An OSError inside that names no file, as where a disk is full, names this one."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    with begun(path) as file:
        file.write(content)


def write_json(path: Path, value: object) -> None:
    """Write a JSON file whole or not at all."""
    write_bytes(path, _encoded(json.dumps(value, indent=1, ensure_ascii=False) + "\n"))


def write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Write a CSV whole or not at all."""
    text = io.StringIO()
    # A carriage return alone ends a line when it is read again, and would stand unquoted.
    quoting = csv.QUOTE_ALL if any("\r" in str(cell) for row in rows for cell in row) else csv.QUOTE_MINIMAL
    csv.writer(text, lineterminator="\n", quoting=quoting).writerows([header, *rows])
    write_bytes(path, _encoded(text.getvalue()))


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", errors="surrogateescape")  # names of files need not be UTF-8


def json_of(path: Path) -> dict[str, Any] | None:
    """What `write_json` wrote there; None where there is nothing, or something damaged. Raises OSError for what a disk does not
    give."""
    try:
        with named(path):
            found = json.loads(path.read_text(encoding="utf-8", errors="surrogateescape"))
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of what `write_csv` wrote, as text by column name."""
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        return list(csv.DictReader(file))


def locked(file: io.IOBase, wait: bool = False) -> bool:
    """Lock an open file until it is closed, or the process ends; False where another process has it locked.

    `wait`: until that one lets go of it.
    """
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError):
        pass  # Windows, or a network disk without locks
    return True
