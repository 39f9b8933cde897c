"""The attention of a decoder's layers: one table of implementations by platform, and their way over the shards."""

import functools
import logging
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec

from sft_jax.errors import BadInput
from sft_jax.model.attention import blockwise, splash
from sft_jax.model.attention.context import gathered, ring
from sft_jax.model.attention.reference import KEPT, TokenPositions, reference
from sft_jax.model.attention.triton import triton
from sft_jax.parallel.rules import Layout

BY_PLATFORM = {"cpu": "blockwise", "gpu": "triton", "tpu": "splash"}


def choose(name: str, platform: str, whole: bool, divided: bool, window: int | None, softcap: float | None) -> str:
    """The implementation of one call: `model.attention`, or the platform's where it is auto, if it can do it.

    Args:
      whole: queries and keys are the same tokens; false for new tokens over a cache.
      divided: the rows are divided between devices.
    """
    name = BY_PLATFORM[platform] if name == "auto" else name
    if not whole and name in ("splash", "triton"):
        return "blockwise"  # a few queries over a cache have no blocks to skip
    if name == "triton" and (divided or window is not None or softcap is not None):
        lacks = "rows divided over a context axis" if divided else "soft-caps" if window is None else "windows"
        _say(f"the triton kernel knows no {lacks}: attention is computed blockwise in XLA, which is slower")
        return "blockwise"
    return name


@functools.cache
def _say(text: str) -> None:
    logging.getLogger(__name__).warning(text)


def attend(
    name: str,
    context: str,
    layout: Layout,
    q_BTNH,
    k_BSKH,
    v_BSKH,
    queries: TokenPositions,
    keys: TokenPositions,
    window=None,
    softcap=None,
) -> jax.Array:
    """Attention [B, T, N, H] by the implementation that `choose` names, each device on its own shard.

    Args:
      name: `model.attention`.
      context: `model.context_attention`, all_gather or ring; how rows that are divided between devices see each other.

    Raises:
      BadInput: key heads divided otherwise than query heads.
    """
    whole = q_BTNH.shape[1] == k_BSKH.shape[1]
    rows = layout.dividing_axes("act_length") if whole else ()
    name = choose(name, layout.platform, whole, bool(rows), window, softcap)
    kernels = splash.for_platform(layout.platform)
    if layout.is_one_device:
        return _on_whole_rows(layout, name, q_BTNH, k_BSKH, v_BSKH, queries, keys, window, softcap)
    groups = q_BTNH.shape[2] // k_BSKH.shape[2]

    def on_shard(q, k, v, queries, keys):
        k, v = _own_key_heads(layout, groups, q, k, v)
        if not rows:
            return _on_whole_rows(layout, name, q, k, v, queries, keys, window, softcap)
        if context == "ring":
            if name == "reference":
                raise BadInput("model.context_attention ring needs model.attention blockwise or splash")
            return ring(kernels if name == "splash" else blockwise, rows, window, softcap, q, k, v, queries)
        k, v, all_keys = jax.tree.map(lambda x: gathered(x, rows), (k, v, keys))
        if name == "splash":
            shard = (jax.lax.axis_index(rows), jax.lax.axis_size(rows))
            return kernels.whole(q, k, v, queries, all_keys, window, softcap, shard)
        return _on_whole_rows(layout, name, q, k, v, queries, all_keys, window, softcap)

    batch = layout.dividing_axes("act_batch")
    query = PartitionSpec(batch, rows, layout.dividing_axes("heads"))
    key = PartitionSpec(batch, rows, layout.dividing_axes("kv_heads"))
    by_row = PartitionSpec(batch, rows)
    where: Any = TokenPositions(by_row, by_row)  # type: ignore[arg-type]
    run = jax.shard_map(
        on_shard,
        mesh=layout.mesh,  # type: ignore[arg-type]
        in_specs=(query, key, key, where, where),
        out_specs=query,
        # The compiler sees to the axes that cut nothing, except around kernels that it does not know.
        axis_names=set(layout.mesh.axis_names)  # type: ignore[union-attr]
        if name in ("splash", "triton")
        else {axis for axes in (batch, rows, layout.dividing_axes("heads")) for axis in axes},
        check_vma=False,
    )
    return run(q_BTNH, k_BSKH, v_BSKH, queries, keys)


def _on_whole_rows(layout: Layout, name, q, k, v, queries, keys, window, softcap):
    if name == "splash":
        return splash.for_platform(layout.platform).whole(
            q, k, v, queries, keys, window, softcap
        )  # it names what it keeps itself
    if name == "triton":
        return checkpoint_name(triton(q, k, v, queries, keys, interpret=layout.platform != "gpu"), KEPT)
    function = {"reference": reference, "blockwise": blockwise.blockwise}[name]
    return checkpoint_name(function(q, k, v, queries, keys, window, softcap), KEPT)


def _own_key_heads(layout: Layout, groups: int, q, k, v):
    """The key and value heads of this device's query heads, where all of them are on every device."""
    heads, kv_heads = layout.dividing_axes("heads"), layout.dividing_axes("kv_heads")
    if kv_heads == heads:
        return k, v
    if kv_heads:
        raise BadInput(
            f"sharding.kv_heads is {'+'.join(kv_heads)!r} and sharding.heads {'+'.join(heads) or 'none'!r}: key heads "
            "go with their query heads, or are whole. Set --sharding.kv-heads none"
        )
    mine = q.shape[2]
    first = jax.lax.axis_index(heads) * mine
    if mine % groups and groups % mine:
        return tuple(jnp.take(x, (first + jnp.arange(mine)) // groups, axis=2) for x in (k, v))
    count = max(1, mine // groups)
    return tuple(jax.lax.dynamic_slice_in_dim(x, first // groups, count, 2) for x in (k, v))
