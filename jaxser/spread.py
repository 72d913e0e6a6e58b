"""One function for every run: spread over the devices, on each of them so many runs at a time."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P


def over_runs(one: Callable[..., Any], mesh: Mesh, parallel: int = 1, apart: bool = False) -> Any:
    """`one(*shared, *own, *carried)` for every run, as a function of these three tuples.

    Shared arguments lie whole on every device (with `apart`, each device has its own along their leading axis); those of the
    two others are split along their leading run axis. What `one` returns first takes the place of `carried`, where there is
    any: in the same buffers, run by run, so that what the work takes besides grows with `parallel` and not with the runs. Each
    device goes through its share `parallel` at a time. One at a time is a loop over runs, whose body never sees how many there
    are: a run alone has the same bits.
    """

    def some(shared, together, carried, first, own):
        mine = jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, first, together), carried)
        if together == 1:
            alone = one(*shared, *jax.tree.map(lambda leaf: leaf[0], (*own, *mine)))
            found = jax.tree.map(lambda leaf: leaf[None], alone)
        else:
            found = jax.vmap(partial(one, *shared))(*own, *mine)
        if not carried:
            return carried, found
        (new, *others) = found
        update = partial(jax.lax.dynamic_update_slice_in_dim, start_index=first, axis=0)
        return jax.tree.map(update, carried, (new,)), others

    def on_a_device(shared, own, carried):
        shared = jax.tree.map(lambda leaf: leaf[0], shared) if apart else shared
        places = len(jax.tree.leaves(own)[0])
        groups, left = divmod(places, parallel)
        grouped = jax.tree.map(lambda leaf: leaf[: groups * parallel].reshape(groups, parallel, *leaf.shape[1:]), own)
        firsts = parallel * jnp.arange(groups)
        carried, found = jax.lax.scan(lambda all_, xs: some(shared, parallel, all_, *xs), carried, (firsts, grouped))
        found = jax.tree.map(lambda leaf: leaf.reshape(groups * parallel, *leaf.shape[2:]), found)
        if left:
            carried, last = some(shared, left, carried, groups * parallel, jax.tree.map(lambda leaf: leaf[-left:], own))
            found = jax.tree.map(lambda *both: jnp.concatenate(both), found, last)
        return (*carried, *found) if carried else found

    specs = (P("runs") if apart else P(), P("runs"), P("runs"))
    on_all = jax.shard_map(on_a_device, mesh=mesh, in_specs=specs, out_specs=P("runs"), check_vma=False)
    return jax.jit(lambda shared, own, carried=(): on_all(shared, own, carried), donate_argnums=2)
