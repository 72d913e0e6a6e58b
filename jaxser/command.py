"""How every command starts and ends: flags from a dataclass, one clear line for an error, exit codes 0, 1 and 2."""

import dataclasses
import gc
import hashlib
import json
import math
import os
import shlex
import signal
import sys
import threading
import time
import traceback
from _thread import interrupt_main
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import tyro

from jaxser import cgroups
from jaxser.errors import CallError

Config = TypeVar("Config")


class _CtrlC:
    """Ctrl-C that is heard wherever it comes.

    Python drops what is raised in a finaliser or in a callback of the garbage collector, and jax has one of these, so that one
    in forty was lost. It is given again until it has been raised elsewhere.
    """

    raised = 0

    @classmethod
    def listen(cls) -> None:
        # A shell that starts a command in the background has it ignore Ctrl-C: so it stays.
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, cls.interrupt)
            sys.unraisablehook = partial(cls.dropped, sys.unraisablehook)

    @classmethod
    def interrupt(cls, number: int, frame: FrameType | None) -> None:
        # What is raised in the hook would be dropped for good, and `again` does not cease.
        if not any(above.f_code is cls.dropped.__code__ for above, _ in traceback.walk_stack(frame)):
            cls.raised += 1
            raise KeyboardInterrupt

    @classmethod
    def dropped(cls, otherwise: Callable[[Any], Any], lost: Any) -> None:
        if issubclass(lost.exc_type, KeyboardInterrupt):
            threading.Thread(target=cls.again, args=(cls.raised,), daemon=True).start()
        else:
            otherwise(lost)

    @classmethod
    def again(cls, raised: int) -> None:
        # Once is not enough: what comes in the moment before the main thread begins to wait does not wake it.
        while True:
            time.sleep(0.05)
            if cls.raised != raised:
                return
            if hasattr(signal, "pthread_kill"):
                signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            else:
                interrupt_main()


def run_command(name: str, config: type[Config], main: Callable[[Config], None]) -> None:
    """Read `config` from the command line and call `main` with it.

    Exits with 2 where the call is wrong, with 1 where the work failed, with 130 at Ctrl-C; the message is one line on stderr.
    An exception that is none of ours is a bug and keeps its traceback. A configuration whose `keeps` is false has nothing to go
    on with. An error of memory may say in an attribute `busy_with` what there was not enough for.
    """
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="surrogateescape")  # names of files need not be UTF-8
    take_any_name(sys.stdout)
    _CtrlC.listen()
    goes_on = ""
    try:
        given = tyro.cli(config, prog=f"python -m {name}")
        goes_on = "what is done is kept, the same command goes on" if getattr(given, "keeps", True) else ""
        main(given)
        sys.stdout.flush()  # what cannot be written is told below
    except CallError as error:
        _leave(name, str(error), 2)
    except ValueError as error:
        if not type(error).__module__.startswith("jaxser."):
            raise
        _leave(name, str(error), 1)
    except BrokenPipeError:
        _give_up_output()  # who read it has seen enough
        sys.exit(1)
    except OSError as error:
        try:
            sys.stdout.flush()
        except OSError:
            _give_up_output()
        _leave(name, f"{error.filename or 'disk'}: {error.strerror or error}", 1)
    except (MemoryError, RuntimeError) as error:
        if not _out_of_memory(error):
            raise
        at = f", busy with {error.busy_with}" if hasattr(error, "busy_with") else ""
        _leave(name, "; ".join(filter(None, (f"out of memory{at}: {_smaller(config)}", goes_on))), 1)
    except KeyboardInterrupt:
        print("; ".join(filter(None, (f"{name}: interrupted", goes_on))), file=sys.stderr, flush=True)
    else:
        return
    # Only Ctrl-C comes here. An ordinary exit takes away what XLA's threads still compute on, and can end in a crash; the
    # collection lets go of the worker processes' semaphores first.
    gc.collect()
    os._exit(130)


def take_any_name(stream: Any) -> None:
    """Have an output write every name, whatever its alphabet is.

    Files and pipes get UTF-8, and names of files that are no UTF-8 the bytes that they have; a terminal, which knows its own
    alphabet alone, gets what is not in it as backslash escapes.
    """
    if not hasattr(stream, "reconfigure"):
        return
    if stream.isatty():
        stream.reconfigure(errors="backslashreplace")
    else:
        stream.reconfigure(encoding="utf-8", errors="surrogateescape")


def _give_up_output() -> None:
    # What still waits to be printed would fail once more at the exit, in Python's words and with its code.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _out_of_memory(error: BaseException) -> bool:
    # XLA's own error is a RuntimeError.
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error) or "Out of memory" in str(error)


LIGHTER = {
    "memory": "--memory GIB leaves frames on disk",
    "parallel": "--parallel 1 trains one run at a time",
    "batch_seconds": "--batch-seconds and --crop-seconds make batches smaller",
    "max_seconds": "--max-seconds SECONDS hears at most so much of a recording",
    "jobs": "--jobs 1 reads one file at a time",
    "segments": "--segments 5 reads long recordings in windows",
}
"""What takes less memory, by the flag that says so."""


def _smaller(config: type) -> str:
    there = {field.name for field in dataclasses.fields(config)}
    return "; ".join(text for flag, text in LIGHTER.items() if flag in there) or "a machine with more of it is needed"


def _leave(name: str, message: str, code: int) -> None:
    print(f"{name}: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)


def demand_at_least(config: Any, least: Mapping[str, int]) -> None:
    """Raise CallError for the first of these flags that is below its smallest value, or no finite number."""
    for name, smallest in least.items():
        value = getattr(config, name)
        if value is not None and not smallest <= value < float("inf"):
            raise CallError(f"--{name.replace('_', '-')} {value}: at least {smallest}")


def workers(jobs: int = 0) -> int:
    """How many work at something where --jobs says so; 0: one for each core that this process may use."""
    return jobs or _cores()


def _cores() -> int:
    # A container may see all cores and have no more than some of their time.
    cores = (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()) or 1
    for limit in cgroups.files("cpu.max"):
        with suppress(OSError, ValueError):  # no such limit
            quota, period = map(int, limit.read_text().split())
            cores = min(cores, math.ceil(quota / period))
    return max(1, cores)


def settings_of(config: Any, left_out: Sequence[str]) -> dict[str, Any]:
    """A configuration as plain data, without the flags in `left_out`: what a folder's config.json holds."""
    values = dataclasses.asdict(config)
    values = {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}
    return {name: str(v) if isinstance(v, Path) else v for name, v in values.items() if name not in left_out}


def hash_of(settings: Mapping[str, Any]) -> str:
    """Twelve hex digits that name the folder of these settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def command_line(module: str, config: Any, left_out: Sequence[str]) -> str:
    """The command that repeats a configuration, with every flag that is not its default, but those in `left_out`."""
    parts = [f"python -m {module}"]
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name not in left_out and value != field.default and value is not None:
            flag = "--" + field.name.replace("_", "-")
            words = value if isinstance(value, tuple) else [value]
            parts.append(flag if value is True else shlex.join([flag, *map(str, words)]))
    return " ".join(parts)


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """Which settings are not the same, each with both values, also inside of groups of settings; empty where all are."""
    found = []
    for name in {**here, **there}:
        one, two = there.get(name), here.get(name)
        if one != two and isinstance(one, Mapping) and isinstance(two, Mapping):
            found.append(differences(one, two))
        elif one != two:
            found.append(f"{shortened(name)}: there {shortened(repr(one))}, here {shortened(repr(two))}")
    return "; ".join(found[:10])


def shortened(text: str, most: int = 120) -> str:
    """A text that somebody else wrote, for a message: no longer than people read."""
    return text if len(text) <= most else text[: most - 1] + "…"
