"""Embedding lookup in a table that is sharded over devices."""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from sft_jax.parallel.rules import Layout, spec


def embed_tokens(layout: Layout, table_VD: jax.Array, tokens_BT: jax.Array, dtype: str) -> jax.Array:
    """Rows [B, T, D] of the table, in `dtype`; each device reads only its own shard of the table.

    Devices that hold different columns of the table all-gather the token ids, look up their columns for all of them,
    and exchange columns for rows (all-to-all). The partitioner would instead replicate the whole result first when the
    batch is sharded over more mesh axes than the columns ("involuntary full rematerialization").
    """
    if layout.is_one_device:
        return table_VD[tokens_BT].astype(dtype)
    columns, vocab = layout.sharding_axes("embed"), layout.sharding_axes("vocab")
    by_row = (layout.sharding_axes("act_batch"), layout.sharding_axes("act_length"))
    dimension = {axis: d for d, axes in enumerate(by_row) for axis in axes}
    spec(("act_batch", "act_length", "vocab"), layout.rules, "embedding lookup")  # raises if one axis shards both

    def on_shard(table, tokens):
        for axis in columns:
            if axis in dimension:
                tokens = jax.lax.all_gather(tokens, axis, axis=dimension[axis], tiled=True)
        if vocab:
            mine = tokens - jax.lax.axis_index(vocab) * table.shape[0]
            held = (mine >= 0) & (mine < table.shape[0])
            x = jnp.where(held[..., None], table[jnp.where(held, mine, 0)], 0).astype(dtype)
            x = jax.lax.psum(x, vocab)  # one device holds the token's row, the others contribute zeros
        else:
            x = table[tokens].astype(dtype)
        # In reverse order: undo the last gather first; neighbouring columns are on the fastest axis.
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
        # Tells the backward pass that the psum over `vocab` is replicated, so it need not sum again.
        check_vma=all(axis in dimension for axis in columns),
    )(table_VD, tokens_BT)
