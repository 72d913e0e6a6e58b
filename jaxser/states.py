"""States of work under way: numbered checkpoints in a folder, written while it goes on, the last whole one found again."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from jaxser import checkpoint
from jaxser.command import differences
from jaxser.errors import CallError, WorkError
from jaxser.hosts import say

Save = Callable[[int, Callable[[], Mapping[str, Any]], Mapping[str, Any]], None]
"""How far the work is, what gives its arrays by name, and what is to be known of them."""


@dataclass(frozen=True)
class Keep:
    """Where a host saves states of its own work, how often, and what they are states of."""

    folder: epath.Path
    kind: str
    """What a state says that it holds."""
    seconds: float
    """From one state to the next, at the least."""
    settings: Mapping[str, Any]
    """Plain data that fixes what the work does: a state of anything else is not gone on from."""
    at_end: bool = False
    """Whether the last state is kept whenever it comes, since more work comes after this."""

    def part(self, name: str, at_end: bool) -> "Keep":
        """For one of several parts of the work, done one after the other."""
        return replace(self, folder=self.folder / name, at_end=at_end)

    def of(self, **settings: Any) -> "Keep":
        """The same with more of what fixes the work."""
        return replace(self, settings=checkpoint.plain({**self.settings, **settings}))


@contextmanager
def saving(keep: Keep | None) -> Iterator[Save]:
    """A function that saves a state where the last one, or the beginning, is `keep.seconds` ago, while the work goes on.

    It returns once the arrays are copied. A state is there whole or not at all; when it is, all others in the folder go. On
    leaving, the last one is waited for. Raises WorkError where it cannot be written. Without `keep` nothing is saved.
    """
    if keep is None:
        yield lambda number, arrays, about: None
        return
    mine = checkpoint.of_this_host("state")
    handler = ocp.CompositeCheckpointHandler(composite_options=ocp.CompositeOptions(multiprocessing_options=mine))
    with ocp.AsyncCheckpointer(handler, multiprocessing_options=mine) as writer:
        last, saved = time.monotonic(), False

        def wait() -> None:
            with checkpoint.written(keep.folder):
                writer.wait_until_finished()
            if saved:
                forget_older(keep.folder)

        def save(number: int, arrays: Callable[[], Mapping[str, Any]], about: Mapping[str, Any]) -> None:
            nonlocal last, saved
            done = keep.at_end and about.get("done", False)
            if time.monotonic() - last < keep.seconds and not done:
                return
            wait()
            leaves = arrays()
            what = checkpoint.contents(keep.kind, leaves, {**about, "settings": keep.settings})
            # Other work may be further than this, and the last state is the one that was written last.
            number = max([number, *(int(path.name) + 1 for path in found(keep.folder)[-1:])])
            with checkpoint.written(keep.folder):
                keep.folder.mkdir(parents=True, exist_ok=True)
                checkpoint.demand_room(keep.folder, leaves)
                writer.save(keep.folder / f"{number:08}", args=what)
            last, saved = time.monotonic(), True

        yield save
        wait()


def latest(keep: Keep | None) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """The arrays of the last state and what is known of them, or None where there is none to go on from.

    One of other work, or a damaged one, is not mixed in: it is named, and stays until this work has saved a state. One that was
    being written goes unnamed. Raises checkpoint.DiskError where a state cannot be read now.
    """
    if keep is None:
        return None
    if keep.folder.exists():
        checkpoint.forget_cut_short(keep.folder)
    for folder in reversed(found(keep.folder)):
        try:
            if differing := differences(checkpoint.about(folder, keep.kind).get("settings", {}), keep.settings):
                raise CallError(f"it is of other work ({differing})")
            return checkpoint.load(folder, keep.kind)
        except checkpoint.DiskError:
            raise
        except (CallError, WorkError) as error:
            say(f"{folder} is not gone on from, and stays until this work has saved a state: {error}")
    return None


def found(folder: epath.Path) -> list[epath.Path]:
    """The whole states in a folder, the last one last. Raises checkpoint.DiskError where a disk does not say."""
    there = folder.iterdir() if checkpoint.is_there(folder) else ()
    whole = (path for path in there if path.name.isdigit() and checkpoint.is_whole(path))
    return sorted(whole, key=lambda path: int(path.name))


def forget_older(folder: epath.Path) -> None:
    """Let go of all states but the last."""
    for older in found(folder)[:-1]:
        older.rmtree()


def forget(folder: epath.Path) -> None:
    """Let go of all of them, and the folder."""
    if folder.exists():
        folder.rmtree()


def named(tree: Any) -> dict[str, Any]:
    """The leaves of any tree by number, as a state keeps them."""
    return {f"{i:04}": leaf for i, leaf in enumerate(jax.tree.leaves(tree))}


def restored(tree: Any, arrays: Mapping[str, Any]) -> Any:
    """A tree of the same structure with the leaves that a state kept. Raises ValueError where they are not as many."""
    return jax.tree.unflatten(jax.tree.structure(tree), [arrays[name] for name in sorted(arrays)])
