"""A function for every run, spread over devices, against a plain loop over the runs."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxser.spread import over_runs

DEVICES, PLACES = 2, 5
"""Five do not divide by two or three: the last of them go by themselves."""

RUNS = DEVICES * PLACES


def one(weights, x, number, state=None) -> Any:
    """In whole numbers, which no order of sums rounds."""
    if state is None:
        return {"products": weights * x, "number": number + weights.sum()}
    return {"x": state["x"] + weights * x, "updates": state["updates"] + number}, state["x"].sum(), number * state["updates"]


@pytest.mark.parametrize("apart", [False, True], ids=["one for all devices", "one for each device"])
@pytest.mark.parametrize("carried", [False, True], ids=["nothing carried", "carried"])
@pytest.mark.parametrize("parallel", [1, 2, 3, 5])
def test_every_run_has_what_a_loop_gives_it(parallel: int, carried: bool, apart: bool):
    random = np.random.default_rng(0)
    weights = random.integers(-9, 10, (DEVICES, 3)).astype(np.float32)
    own = random.integers(-9, 10, (RUNS, 3)).astype(np.float32), np.arange(RUNS, dtype=np.int32)
    states = {"x": random.integers(-9, 10, (RUNS, 3)).astype(np.float32), "updates": 7 * np.arange(RUNS, dtype=np.int32)}

    mesh = Mesh(np.array(jax.devices()[:DEVICES]), ("runs",))
    each, whole = NamedSharding(mesh, P("runs")), NamedSharding(mesh, P())
    shared = jax.device_put((weights,), each) if apart else jax.device_put((weights[0],), whole)
    given = [shared, jax.device_put(own, each), *([jax.device_put((states,), each)] * carried)]
    found = over_runs(one, mesh, parallel, apart)(*given)

    expected = []
    for run in range(RUNS):
        mine, *more = jax.tree.map(lambda leaf, run=run: jnp.asarray(leaf[run]), (own, *[states] * carried))
        expected.append(one(weights[run // PLACES if apart else 0], *mine, *more))
    jax.tree.map(np.testing.assert_array_equal, found, jax.tree.map(lambda *leaves: np.stack(leaves), *expected))
