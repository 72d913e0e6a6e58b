"""Several hosts as one: how they find each other, share work out and tell each other what came of it.

What they tell each other waits at a barrier of jax's coordination service, for as long as all are alive; the exchange itself
comes after it, for gloo, which carries it between CPUs, gives up after half a minute. What goes wrong on one host is told in
place of its answer and ends all; since the others may be hours from there, it is said and noted at once. With one process
nothing of this is touched: it is the first, and alone.
"""

import atexit
import itertools
import json
import os
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Annotated, Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
import tyro
from jax._src import distributed  # no public place leads to the notes of the coordination service
from jax.experimental import multihost_utils
from jaxtyping import UInt8

from jaxser.digests import text_digest
from jaxser.errors import CallError, WorkError

Thing = TypeVar("Thing")

HEARTBEAT_SECONDS = 60
"""A host that has not been heard of for so long is lost."""

PIECE = 1 << 24
"""At most so many bytes of each host are exchanged at once: they pass through the memory of the devices."""

FOR_EVER = 10 * 365 * 24 * 3600 * 1000
"""Milliseconds, ten years: a barrier wants a limit, and ends before it when a host is lost."""


Coordinator = Annotated[
    str | None,
    tyro.conf.arg(
        help="Several hosts: HOST:PORT of the first one (`auto` on a TPU pod or under Slurm). Each runs the same command."
    ),
]
Processes = Annotated[int | None, tyro.conf.arg(help="How many hosts.")]
Process = Annotated[int | None, tyro.conf.arg(help="Which one this is, from 0.")]
"""The flags of every command that runs on several hosts. By annotation and not by inheritance, which would put them first."""

FLAGS = ("coordinator", "processes", "process")
"""Their names: they change no score."""


def check(config: Any) -> None:
    """Raise CallError for flags that contradict each other."""
    hosts = (config.processes, config.process)
    if config.coordinator in (None, "auto"):
        if hosts != (None, None):
            raise CallError("--processes and --process need --coordinator HOST:PORT")
    elif None in hosts or not 0 <= config.process < config.processes or not re.fullmatch(r".+:\d+", config.coordinator):
        raise CallError(
            f"--coordinator {config.coordinator} --processes {config.processes} --process {config.process}: HOST:PORT, how "
            "many there are, and which one this is, from 0"
        )


def join(config: Any) -> None:
    """Connect with the other hosts where there are any, before anything else is asked of jax."""
    if config.coordinator is None:
        return
    try:
        given = () if config.coordinator == "auto" else (config.coordinator, config.processes, config.process)
        jax.distributed.initialize(*given, heartbeat_timeout_seconds=HEARTBEAT_SECONDS)
    except (ValueError, RuntimeError) as error:
        raise CallError(f"--coordinator {config.coordinator}: {str(error).splitlines()[0]}") from None
    if count() == 1:
        return
    devices = Counter(device.process_index for device in jax.devices())
    if len(set(devices.values())) > 1:
        raise CallError(
            f"the hosts have {', '.join(map(str, devices.values()))} devices: each must have as many "
            "(of CPUs, JAX_NUM_CPU_DEVICES says how many)"
        )
    _watch()
    with _without_gloo_on_stdout():
        barrier()


@contextmanager
def joined(config: Any) -> Iterator[None]:
    """The work of a command on all hosts: begun together and ended together, for none goes on where another failed."""
    join(config)
    try:
        yield
    except Exception as error:
        if count() > 1 and not hasattr(error, "told"):
            _told(error)
        raise
    barrier()


def count() -> int:
    """How many hosts there are."""
    return jax.process_count() if jax.distributed.is_initialized() else 1


def index() -> int:
    """Which of them this is."""
    return jax.process_index() if count() > 1 else 0


def first() -> bool:
    """Whether this is the host that prints, and writes what there is only one of."""
    return index() == 0


def say(text: str) -> None:
    """Progress and remarks, once for all hosts."""
    if first():
        print(text, file=sys.stderr, flush=True)


def share(things: Sequence[Thing]) -> Sequence[Thing]:
    """What of it is this host's: every n-th, so that sorted things are shared out evenly."""
    return things[index() :: count()]


def tell(work: Callable[[], Any], awaited: bool = False) -> list[Any]:
    """Do work, each host its own, and give what came of it on all of them, in their order: plain data, as JSON gives it back.

    Raises, on every host, what went wrong on the first of those on which something did. That host says so at once and leaves
    a note for `check_others`, unless the others do nothing but wait for it (`awaited`).
    """
    if count() == 1:
        return [work()]
    value, error = None, None
    try:
        value = work()
    except Exception as found:
        error = found
        if not awaited and not hasattr(error, "told"):
            _warn(error)
    return [value for value, _ in _told(error, value, awaited=awaited)]


def check_others() -> None:
    """Raise what has gone wrong on another host, which then waits in `tell`: for the midst of long work in it."""
    if count() == 1:
        return
    try:
        notes = distributed.global_state.client.key_value_dir_get(_notes())
    except (RuntimeError, ValueError) as error:
        _leave(str(error))
    if notes:
        raise _as_told(_from_words(*json.loads(notes[0][1])))


def alike(error: Exception) -> bool:
    """Whether every host has this error from work done for all of them (`of_first`), and so may go on to other work.

    Not where one has failed at its own share, or has a bug or a full disk.
    """
    return count() == 1 or getattr(error, "alike", False)


def barrier() -> None:
    """Wait until all hosts are here."""
    tell(lambda: None)


def of_first(work: Callable[[], Any]) -> Any:
    """What came of work that the first host alone does, as plain data."""
    return tell(lambda: work() if first() else None, awaited=True)[0]


def after_first(work: Callable[[], Thing]) -> Thing:
    """Work that leaves files behind: the first host does it, and when it is done the others, who then find those files."""
    if count() == 1:
        return work()
    done: list[Thing] = []
    for mine in (first(), not first()):
        tell(lambda mine=mine: done.append(work()) if mine else None, awaited=True)
    return done[0]


def demand_agreement(value: Any, message: str) -> None:
    """Raise CallError with this message where the hosts do not all have the same plain data."""
    if len(set(tell(lambda: text_digest(json.dumps(value, sort_keys=True))))) > 1:
        raise _as_told(CallError(message))


def arrays_of_all(arrays: Sequence[np.ndarray]) -> list[list[np.ndarray]]:
    """The arrays of every host, in the order of hosts. Each has as many as it likes, of any shapes."""
    if count() == 1:
        return [list(arrays)]
    kinds = [(array.dtype.str, list(array.shape)) for array in arrays]
    content = b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)
    every = []
    for theirs, blob in _told(None, kinds, content):
        sizes = [np.dtype(kind).itemsize * int(np.prod(shape)) for kind, shape in theirs]
        starts = [0, *itertools.accumulate(sizes)]
        cut = (blob[start:stop] for start, stop in itertools.pairwise(starts))
        every.append([np.frombuffer(of, kind).reshape(shape) for of, (kind, shape) in zip(cut, theirs, strict=True)])
    return every


def _told(error: Exception | None, value: Any = None, content: bytes = b"", awaited: bool = False) -> list[tuple[Any, bytes]]:
    # Of every host its value and its bytes. Where one has an error, that is raised on all of them.
    head = json.dumps({"wrong": _in_words(error) if error else None, "value": value}).encode()
    heads, contents = [], []
    for message in _exchanged(len(head).to_bytes(8, "big") + head + content):
        stop = 8 + int.from_bytes(message[:8], "big")
        heads.append(json.loads(message[8:stop]))
        contents.append(message[stop:])
    if error is not None and not isinstance(error, (CallError, WorkError, OSError)):
        raise _as_told(error)  # a bug of ours keeps its traceback
    if wrong := [head["wrong"] for head in heads if head["wrong"]]:
        alike = awaited and all(kind == "WorkError" for kind, _ in wrong)
        raise _as_told(_from_words(*wrong[0]), alike) from error
    return [(head["value"], content) for head, content in zip(heads, contents, strict=True)]


def _in_words(error: Exception) -> tuple[str, str]:
    if isinstance(error, OSError):
        return "OSError", f"{error.filename or 'disk'}: {error.strerror or error}"
    if isinstance(error, (CallError, WorkError)):
        return type(error).__name__, str(error)
    return "bug", f"host {index()} failed: {type(error).__name__}: {error}"


def _from_words(kind: str, text: str) -> CallError | WorkError:
    return CallError(text) if kind == "CallError" else WorkError(text)


def _as_told(error: Exception, alike: bool = False) -> Exception:
    # Whoever catches it knows that the others have been told too.
    error.told, error.alike = True, alike
    return error


def _warn(error: Exception) -> None:
    words = _in_words(error)
    print(f"jaxser: {' '.join(words[1].split())} (told to the other hosts)", file=sys.stderr, flush=True)
    with suppress(RuntimeError, ValueError):  # where a host is lost the exchange says so
        distributed.global_state.client.key_value_set(f"{_notes()}{index()}", json.dumps(words))


def _notes() -> str:
    # A place of its own for each exchange: what went wrong before one is no news after it.
    return f"jaxser-wrong-{_exchanges}/"


_exchanges = 0
"""How many there were: barriers want names of their own, and all hosts come to all of them in one order."""


def _exchanged(message: bytes) -> list[bytes]:
    # The bytes of every host.
    global _exchanges
    try:
        ocp.multihost.get_barrier_sync_fn()(key=f"jaxser-{_exchanges}", timeout_ms=FOR_EVER)
        _exchanges += 1
        length = np.frombuffer(len(message).to_bytes(8, "big"), np.uint8)
        lengths = [int.from_bytes(row.tobytes(), "big") for row in multihost_utils.process_allgather(length)]
        mine, found = np.frombuffer(message, np.uint8), [bytearray() for _ in lengths]
        for start in range(0, max(lengths), PIECE):
            for bytes_so_far, row in zip(found, _pieces(mine[start : start + PIECE], max(lengths) - start), strict=True):
                bytes_so_far += row.tobytes()
    except (RuntimeError, ValueError) as error:  # jax has both for one that no longer answers
        _leave(str(error))
    return [bytes(text[:length]) for text, length in zip(found, lengths, strict=True)]


def _pieces(mine: UInt8[np.ndarray, " k"], longest: int) -> UInt8[np.ndarray, "hosts m"]:
    # Widths are powers of two: each is one compilation.
    width = min(PIECE, 1 << max(10, (longest - 1).bit_length()))
    return multihost_utils.process_allgather(np.pad(mine, (0, width - len(mine))))


_leaving = threading.Lock()


def _leave(reason: str) -> None:
    # An ordinary exit would wait for the host that is lost. Only one thread says so.
    if not _leaving.acquire(blocking=False):
        time.sleep(FOR_EVER / 1000)
    known = " ".join(reason.split())[:200]
    print(f"jaxser: another host was lost: run the same command again on all of them ({known})", file=sys.stderr, flush=True)
    os._exit(1)


def _watch() -> None:
    # Who waits at a barrier hears at once when a host is lost, also in the midst of work; jax, where it is faster, aborts us
    # then with a stack of its own. Two barriers, each short of somebody until the end: the first host's thread waits at one for
    # all the others, theirs at the other for the first host.
    here, there = ("first", "others") if first() else ("others", "first")
    wait_at = ocp.multihost.get_barrier_sync_fn()

    def wait() -> None:
        try:
            wait_at(key=f"jaxser-watch-{here}", timeout_ms=FOR_EVER)
        except (RuntimeError, ValueError) as error:
            _leave(str(error))

    def end() -> None:
        _leaving.acquire(blocking=False)
        with suppress(RuntimeError, ValueError):
            wait_at(key=f"jaxser-watch-{there}", timeout_ms=1000 * HEARTBEAT_SECONDS)
        watch.join(HEARTBEAT_SECONDS)  # a thread that is still inside jax when Python ends would crash it

    watch = threading.Thread(target=wait, name="watch", daemon=True)
    watch.start()
    atexit.register(end)  # before jax itself lets go of the others


@contextmanager
def _without_gloo_on_stdout() -> Iterator[None]:
    # On its first use gloo prints on stdout that it is connected, where results go.
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)
