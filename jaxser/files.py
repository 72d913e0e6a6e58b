"""Files that somebody will rely on: there whole or not at all, named where they cannot be written, one writer at a time; and
what lies in folders and tables that people made, of which nothing is passed over in silence."""

import csv
import io
import json
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from jaxser.errors import CallError, WorkError


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


def read_table(path: Path, name: str, needed: Sequence[str]) -> tuple[list[str], list[tuple[int, dict[str, str | None]]]]:
    """The header of a CSV that people wrote, and its rows by column, each with the number of its last line in the file.

    `name` is what the table is called in an error. A cell is None where its row ends before. Raises CallError for what is no
    CSV in UTF-8, has no column of those `needed`, or a row with more cells than columns; OSError where it cannot be read.
    """
    with path.open(encoding="utf-8-sig", newline="") as file:
        try:
            reader = csv.DictReader(file, strict=True)
            header = [cell.strip() for cell in reader.fieldnames or []]
            if missing := [column for column in needed if column not in header]:
                raise CallError(f"{name}: no column {', '.join(missing)} in its header {','.join(header)[:120]!r}")
            reader.fieldnames = header
            rows = [(reader.line_num, row) for row in reader]
        except (csv.Error, UnicodeDecodeError) as error:
            raise CallError(f"{name}: not a CSV in UTF-8: {error}") from None
    for line, row in rows:
        # A comma in a text that is not quoted shifts all cells behind it: another speaker, and nobody would see it.
        surplus = row.pop(None, [])
        if any(cell.strip() for cell in surplus):
            cells = len(header) + len(surplus)
            raise CallError(
                f"{name}, line {line}: more cells than the header has columns ({cells} and {len(header)}): quote a text that "
                "holds commas"
            )
    return header, rows


def below(folder: Path) -> Iterator[Path]:
    """Every file below a folder, in no order, and every link that leads nowhere.

    Linked folders are entered too, but each folder once: by its own name where that is below `folder`, else by the first link.
    Folders whose name begins with a dot are not: there git-annex and DataLad keep the files that they link to, under names that
    say nothing.
    Raises WorkError for a folder that cannot be read.
    """
    home, seen, waiting = os.path.realpath(folder), set(), [folder]
    while waiting:
        links = []
        for start in waiting:
            # One that leads up, to a folder around this one, would bring in all that lies beside it.
            if start is not folder and Path(home).is_relative_to(os.path.realpath(start)):
                continue
            for at, folders, names in os.walk(start, onerror=_unread):
                real = os.path.realpath(at)
                if real in seen:
                    folders.clear()
                    continue
                seen.add(real)
                folders[:] = [name for name in folders if not name.startswith(".")]
                yield from (Path(at, name) for name in names)
                linked = {name for name in folders if os.path.islink(os.path.join(at, name))}
                links += [Path(at, name) for name in linked]
                folders[:] = [name for name in folders if name not in linked]
        waiting = sorted(links)  # after all that is there by its own name


def lying_in(folder: Path, pattern: str) -> list[Path]:
    """What lies in a folder under names of this pattern, in order; nothing where there is no such folder.

    Raises WorkError where it cannot be read, which `glob` takes for an empty one.
    """
    try:
        return sorted(path for path in folder.iterdir() if fnmatchcase(path.name, pattern))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        _unread(error)


def _unread(error: OSError) -> NoReturn:
    raise WorkError(
        f"{error.filename}: {error.strerror}, and what lies in it would be missing: make it readable, or move it elsewhere"
    ) from None


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
