"""Runs shared out evenly over all devices of all hosts, and what came of them brought together again."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import jax
import numpy as np

from jaxser import devices, hosts
from jaxser.ensemble import Trained
from jaxser.train import Run


def train_shared(runs: Sequence[Run], train: Callable[[list[Run]], Trained]) -> tuple[Trained | None, list[int]]:
    """Train this host's share with `train`, and give all that came out, run by run, with the device of each.

    On hosts other than the first None stands for what came out. What goes wrong on one host is raised on all.
    """
    share: list[Trained] = []
    mine = list(hosts.share(runs))  # none where there are fewer runs than hosts
    hosts.tell(lambda: share.extend([train(mine)] if mine else []))
    placed = devices.dealt(len(runs), hosts.count(), jax.local_device_count())
    if hosts.count() == 1:
        return share[0], placed
    arrays = [np.asarray(leaf) for one in share for leaf in (*_leaves(one), *one.logits, *one.losses)]
    every = hosts.arrays_of_all(arrays)
    return (_together(share[0], every, len(runs)) if hosts.first() else None), placed


def _leaves(one: Trained) -> list[np.ndarray]:
    return jax.tree.leaves((one.params, one.standards))


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
