"""Runs shared out evenly over all devices of all hosts, and what came of them brought together again."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import jax
import numpy as np

from jaxser import hosts
from jaxser.train import Run, Trained


def devices_of(runs: int, hosts: int, devices: int) -> list[int]:
    """The device of every run: dealt in turn to the hosts and, on each, to its devices. Numbered host by host.

    No two devices differ by more than one run; each host has the runs that hosts.share gives it.
    """
    return [run % hosts * devices + run // hosts % devices for run in range(runs)]


def laid_out(runs: int, devices: int) -> list[int | None]:
    """The order in which one host's runs, dealt to its devices in turn, are cut into one block for each; None fills one up."""
    devices = min(runs, devices)
    longest = -(-runs // devices)
    blocks = ([*range(device, runs, devices)] for device in range(devices))
    return [run for block in blocks for run in [*block, *[None] * (longest - len(block))]]


def train_shared(runs: Sequence[Run], train: Callable[[list[Run]], Trained]) -> tuple[Trained | None, list[int]]:
    """Train this host's share with `train`, and give all that came out, run by run, with the device of each.

    On hosts other than the first None stands for what came out. What goes wrong on one host is raised on all.
    """
    devices = jax.local_device_count()
    share: list[Trained] = []
    hosts.tell(lambda: share.extend(_train_here(list(hosts.share(runs)), devices, train)))
    placed = devices_of(len(runs), hosts.count(), devices)
    if hosts.count() == 1:
        return share[0], placed
    arrays = [np.asarray(leaf) for one in share for leaf in (*_leaves(one), *one.logits, *one.losses)]
    every = hosts.arrays_of_all(arrays)
    return (_together(share[0], every, len(runs)) if hosts.first() else None), placed


def _leaves(one: Trained) -> list[np.ndarray]:
    return jax.tree.leaves((one.params, one.standards))


def _train_here(mine: list[Run], devices: int, train: Callable[[list[Run]], Trained]) -> list[Trained]:
    if not mine:
        return []  # fewer runs than hosts
    order = laid_out(len(mine), devices)
    # What fills up a block has no updates.
    filler = replace(mine[0], updates=0, test=mine[0].test[:1])
    found = train([filler if run is None else mine[run] for run in order])
    if order == [*range(len(mine))]:
        return [found]
    places = [order.index(run) for run in range(len(mine))]
    params, standards = jax.tree.map(lambda leaf: leaf[places], (found.params, found.standards))
    logits, losses = ([of[place] for place in places] for of in (found.logits, found.losses))
    return [replace(found, params=params, standards=standards, logits=logits, losses=losses)]


def _together(mine: Trained, every: list[list[np.ndarray]], runs: int) -> Trained:
    # Hosts took every n-th run.
    known, structure = jax.tree.flatten((mine.params, mine.standards))
    leaves = [np.empty((runs, *leaf.shape[1:]), leaf.dtype) for leaf in known]
    logits, losses = [mine.logits[0]] * runs, [mine.losses[0]] * runs
    for host, arrays in enumerate(every):
        if not arrays:
            continue
        theirs = slice(host, None, len(every))
        of_runs = arrays[len(leaves) :]
        for leaf, found in zip(leaves, arrays, strict=False):
            leaf[theirs] = found
        logits[theirs], losses[theirs] = of_runs[: len(of_runs) // 2], of_runs[len(of_runs) // 2 :]
    params, standards = jax.tree.unflatten(structure, leaves)
    return replace(mine, params=params, standards=standards, logits=logits, losses=losses)
