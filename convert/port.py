"""Named source tensors -> a tree of parameters, by a table of rules: one-to-one, or an error that lists every fault."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxser.checkpoint import named_leaves
from jaxser.errors import WorkError


class Rule(NamedTuple):
    """Source names that match `pattern` whole become the parameter `target`, whose {} take the pattern's groups in turn."""

    pattern: str
    target: str
    change: Callable[[np.ndarray], np.ndarray] = np.asarray
    """From the source's layout to ours; the shape that comes out is checked against the parameter's."""


def port(tensors: Mapping[str, np.ndarray], rules: Sequence[Rule], shapes: Mapping[str, Any]) -> dict[str, Any]:
    """Fill the tree `shapes` (leaves with a .shape) with the tensors, as float32 where they are of lower precision.

    Every tensor must be used once and every parameter filled once, with its shape and finite values: otherwise one
    WorkError lists all that is wrong.
    """
    expected = {name: tuple(leaf.shape) for name, leaf in named_leaves(shapes)}
    faults, filled, sources = [], {}, {}
    for source, tensor in tensors.items():
        targets = [
            (rule.target.format(*found.groups()), rule) for rule in rules if (found := re.fullmatch(rule.pattern, source))
        ]
        if len(targets) != 1 or targets[0][0] not in expected:
            why = "two rules claim it" if len(targets) > 1 else "nothing in this architecture takes it"
            faults.append(f"{source} {tuple(tensor.shape)}: {why}")
            continue
        ((target, rule),) = targets
        if target in filled:
            faults.append(f"{source}: {target} has been filled by {sources[target]}")
            continue
        sources[target], filled[target] = source, None
        try:
            value = rule.change(tensor)
        except ValueError:
            faults.append(
                f"{source} {tuple(tensor.shape)}: not {len(expected[target])}-dimensional as {target} {expected[target]}"
            )
            continue
        if value.shape != expected[target]:
            faults.append(f"{source} {tuple(tensor.shape)}: it gives {value.shape}, and {target} is {expected[target]}")
        elif not (np.issubdtype(value.dtype, np.floating) and np.isfinite(value).all()):
            faults.append(f"{source}: it holds values that are not finite numbers")
        else:
            filled[target] = np.ascontiguousarray(value, np.promote_types(value.dtype, np.float32))
    faults += [f"{name} {shape}: no tensor fills it" for name, shape in expected.items() if name not in filled]
    if faults:
        raise WorkError(f"{len(faults)} fault(s) in the tensors: " + "; ".join(faults))
    tree: dict[str, Any] = {}
    for name, value in filled.items():
        *folders, leaf = name.split("/")
        place = tree
        for folder in folders:
            place = place.setdefault(folder, {})
        place[leaf] = value
    return tree
