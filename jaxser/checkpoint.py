"""Weights on disk: one Orbax checkpoint that holds the arrays and the configuration they belong to."""

import errno
import hashlib
import json
import logging
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from jaxser.errors import CallError, WorkError

FORMAT = "jaxser-1"

DAMAGED = (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, AssertionError, RecursionError)
"""What Orbax raises for a checkpoint whose files are not as it wrote them, or cannot be read."""

GONE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG)
"""What an operating system says where nothing lies, or something else than was written; all else it says of the disk."""


class DiskError(WorkError):
    """A disk does not give now what may well be whole: no reason to delete it, or to make it anew."""


def _said_twice(record: logging.LogRecord) -> bool:
    # Orbax logs, with its traceback, what it then raises, and leaves tasks behind of which asyncio says the same.
    text = record.getMessage()
    return "_SignalingThread" in text or ("never retrieved" in text and "orbax" in text)


for _name in ("absl", "asyncio"):
    logging.getLogger(_name).addFilter(lambda record: not _said_twice(record))


def tree_digest(tree: Mapping[str, Any]) -> str:
    """The sha256 of the names, types, shapes and values of a tree of arrays, whatever file they come from."""
    found = hashlib.sha256()
    for name, value in named_leaves(tree):
        array = np.ascontiguousarray(value)
        found.update(f"{name} {array.dtype} {array.shape}\n".encode())
        found.update(array.data)
    return found.hexdigest()


def named_leaves(tree: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Every leaf with its path, such as `encoder_0/kernel`, in order of the paths."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return sorted((jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in leaves)


def save(
    path: str | os.PathLike, kind: str, params: Mapping[str, Any], about: Mapping[str, Any], one_host: bool = False
) -> None:
    """Write a new checkpoint of this kind, whole or not at all. Paths may be remote (gs://).

    `about` is plain data, kept beside the arrays. All hosts call this together, once the first of them has called `make_room`;
    or, with `one_host`, one of them. Raises CallError where something is at `path` already.
    """
    folder = demand_new(path)
    if one_host or jax.process_count() == 1:
        make_room(folder, params)
    options = of_this_host("write") if one_host else ocp.options.MultiprocessingOptions()
    handler = ocp.CompositeCheckpointHandler(composite_options=ocp.CompositeOptions(multiprocessing_options=options))
    with written(folder), ocp.Checkpointer(handler, multiprocessing_options=options) as writer:
        writer.save(folder, args=contents(kind, params, about))


def make_room(path: str | os.PathLike, params: Mapping[str, Any]) -> None:
    """Make ready for a new checkpoint: the folder around it, without what a writing that was cut short has left in its place.

    Raises WorkError where a local disk has no room for it. For one host: the others share the disk, and wait in Orbax for one
    that fails there.
    """
    folder = absolute(path)
    folder.parent.mkdir(parents=True, exist_ok=True)
    forget_cut_short(folder.parent, folder.name)
    with written(folder):
        demand_room(folder.parent, params)


def forget_cut_short(parent: epath.Path, name: str = "*") -> None:
    """Take away what a writing that was cut short has left in a folder: Orbax would warn of it."""
    for left in parent.glob(f"{name}.orbax-checkpoint-tmp*"):
        left.rmtree()


def demand_room(folder: epath.Path, params: Mapping[str, Any]) -> None:
    """Raise OSError where a local folder has no room for these arrays: Orbax finds out in threads, of which each complains."""
    if "://" in str(folder) or not hasattr(os, "posix_fallocate"):
        return
    size = sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(dict(params)))
    with tempfile.TemporaryFile(dir=folder) as trial:  # it has no name, and goes whatever happens
        try:
            os.posix_fallocate(trial.fileno(), 0, size + 65_536)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):  # a disk that cannot be asked
                raise


@contextmanager
def written(path: epath.Path) -> Iterator[None]:
    """What Orbax raises inside, of a full disk or a folder that cannot be written, as a WorkError."""
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        # tensorstore says everything twice before.
        reason = getattr(error, "strerror", None) or str(error).rpartition(": ")[2].partition(" [os_error_code")[0]
        raise WorkError(f"{path} could not be written: {reason or type(error).__name__}") from None


def contents(kind: str, params: Mapping[str, Any], about: Mapping[str, Any]) -> ocp.args.Composite:
    """What Orbax is to write: the arrays, copied to the host, and what is to be known of them."""
    params = jax.tree.map(np.asarray, dict(params))
    note = {"format": FORMAT, "kind": kind, "digest": tree_digest(params), **about}
    return ocp.args.Composite(about=ocp.args.JsonSave(note), params=ocp.args.StandardSave(params))


def of_this_host(name: str) -> ocp.options.MultiprocessingOptions:
    """Of Orbax, for what this host reads or writes by itself: it would wait for the others."""
    index = jax.process_index()
    return ocp.options.MultiprocessingOptions(index, {index}, f"{name}-{index}")


def demand_new(path: str | os.PathLike) -> epath.Path:
    """The absolute path, or a CallError where something is there: nothing is ever written over."""
    folder = absolute(path)
    if folder.exists():
        raise CallError(f"{path} exists already: give another place, or delete it first")
    return folder


def about(path: str | os.PathLike, kind: str) -> dict[str, Any]:
    """What a checkpoint says of itself, without reading its arrays; `digest` is that of the arrays.

    Raises CallError where there is none at `path`, or one of another kind, and DiskError where it cannot be read now.
    """
    folder = absolute(path)
    if not is_there(path):
        raise CallError(f"{path}: no such folder")
    if not is_whole(path):
        raise CallError(f"{path} is not a whole checkpoint: what wrote it was cut short; delete it")
    try:
        note = json.loads((folder / "about" / "metadata").read_text())
        found, digest = note["kind"], note["digest"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        _demand_readable(path, error)
        raise CallError(f"{path} is no checkpoint of jaxser, or not a whole one") from None
    if note.get("format") != FORMAT or not isinstance(digest, str):
        raise CallError(f"{path} is a checkpoint of another version of jaxser ({note.get('format')}; this one reads {FORMAT})")
    if found != kind:
        raise CallError(f"{path} holds {found}, not {kind}")
    return note


def is_there(path: str | os.PathLike) -> bool:
    """Whether anything lies there. Raises DiskError where a local disk does not say, which `exists` would take for a no."""
    folder = absolute(path)
    if "://" in str(folder):
        return folder.exists()
    try:
        os.stat(folder)
    except (OSError, ValueError) as error:  # no file can have a name with a zero in it
        _demand_readable(path, error)
        return False
    return True


def _demand_readable(path: str | os.PathLike, error: Exception) -> None:
    # Raises DiskError for an error of the disk, or of the way there, and not of what lies on it. Tensorstore says it in words.
    text = " ".join(str(error).split())
    local, remote = re.search(r"\[os_error_code='(\d+)'", text), re.match("ABORTED|UNAVAILABLE|DEADLINE_EXCEEDED", text)
    number = error.errno if isinstance(error, OSError) else local and int(local[1])
    if (number and number not in GONE) or (remote and not number):
        reason = os.strerror(number) if number else text.partition(" [")[0][:300]
        raise DiskError(f"{path} cannot be read now: {reason}: run again") from None


def is_whole(path: str | os.PathLike) -> bool:
    """Whether writing a checkpoint came to its end. A local one has its name only then; a remote one has a mark."""
    folder = absolute(path)
    return "://" not in str(folder) or ocp.utils.is_checkpoint_finalized(folder)


def load(path: str | os.PathLike, kind: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arrays of a checkpoint, as numpy, and what it says of itself.

    Raises CallError and DiskError as `about` does, and WorkError where the arrays are not those that were written.
    """
    note = about(path, kind)
    mine = of_this_host("read")
    try:
        handler = ocp.CompositeCheckpointHandler(
            composite_options=ocp.CompositeOptions(multiprocessing_options=mine),
            params=ocp.StandardCheckpointHandler(multiprocessing_options=mine),
        )
        with ocp.Checkpointer(handler, multiprocessing_options=mine) as reader:
            params = reader.restore(absolute(path), args=ocp.args.Composite(params=ocp.args.StandardRestore()))["params"]
        params = jax.tree.map(np.asarray, params)
    except DAMAGED as error:
        _demand_readable(path, error)
        raise WorkError(f"{path} is damaged: {' '.join(str(error).split())[:300] or type(error).__name__}") from None
    if tree_digest(params) != note["digest"]:
        raise WorkError(f"{path} is damaged: its arrays are not those that were written (their sha256 differs)")
    return params, note


def absolute(path: str | os.PathLike) -> epath.Path:
    """A path as Orbax wants it: absolute, or remote as it stands."""
    return epath.Path(path).expanduser() if "://" in str(path) else epath.Path(Path(path).expanduser().absolute())


def plain(values: Any) -> Any:
    """The same as JSON gives it back, so that what was kept and what is at hand compare equal."""
    return json.loads(json.dumps(values))
