"""The embedding lookup over a table that is divided between devices."""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from sft_jax.parallel.rules import Layout, spec


def look_up(layout: Layout, table_VD: jax.Array, tokens_BT: jax.Array, dtype: str) -> jax.Array:
    """Rows [B, T, D] of the table, in `dtype`; each device reads its own part of the table and no other.

    Devices that hold different columns of the table exchange token ids, look up their columns for all of them, and
    swap columns for rows (all-to-all). Left to itself, the partitioner makes the whole result on every device first
    where rows lie on more mesh axes than the columns do ("involuntary full rematerialization").
    """
    if layout.is_one_device:
        return table_VD[tokens_BT].astype(dtype)
    columns, vocab = layout.dividing_axes("embed"), layout.dividing_axes("vocab")
    by_row = (layout.dividing_axes("act_batch"), layout.dividing_axes("act_length"))
    dimension = {axis: d for d, axes in enumerate(by_row) for axis in axes}
    spec(("act_batch", "act_length", "vocab"), layout.rules, "embedding lookup")  # no axis divides both

    def on_shard(table, tokens):
        for axis in columns:
            if axis in dimension:
                tokens = jax.lax.all_gather(tokens, axis, axis=dimension[axis], tiled=True)
        if vocab:
            mine = tokens - jax.lax.axis_index(vocab) * table.shape[0]
            held = (mine >= 0) & (mine < table.shape[0])
            x = jnp.where(held[..., None], table[jnp.where(held, mine, 0)], 0).astype(dtype)
            x = jax.lax.psum(x, vocab)  # one of them holds the token, the others add zeros
        else:
            x = table[tokens].astype(dtype)
        # In reverse: what was gathered last is swapped back first, and the fastest axis numbers neighbouring columns.
        for axis in reversed(columns):
            if axis in dimension:
                x = jax.lax.all_to_all(x, axis, split_axis=dimension[axis], concat_axis=2, tiled=True)
            else:
                x = jax.lax.all_gather(x, axis, axis=2, tiled=True)
        return x

    return jax.shard_map(
        on_shard,
        mesh=layout.mesh,  # type: ignore[arg-type]
        in_specs=(PartitionSpec(vocab, columns), PartitionSpec(*by_row)),
        out_specs=PartitionSpec(*by_row),
        # Lets the backward pass know that every device has the whole sum over `vocab`, and need not sum again.
        check_vma=all(axis in dimension for axis in columns),
    )(table_VD, tokens_BT)
