"""Choice of the attention implementation by platform, and its `shard_map` over the layout."""

import functools
import logging
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec

from sft_jax.errors import BadInput
from sft_jax.model.attention import blockwise, splash
from sft_jax.model.attention.context import gather_rows, ring
from sft_jax.model.attention.reference import KEPT, TokenPositions, reference
from sft_jax.model.attention.triton import triton
from sft_jax.parallel.rules import Layout

BY_PLATFORM = {"cpu": "blockwise", "gpu": "triton", "tpu": "splash"}


def choose(name: str, platform: str, whole: bool, divided: bool, window: int | None, softcap: float | None) -> str:
    """The implementation for one call: `model.attention` (auto: the platform's), or blockwise if unsupported.

    Args:
      whole: queries and keys are the same tokens; false for decoding over a cache.
      divided: the rows are sharded over devices.
    """
    name = BY_PLATFORM[platform] if name == "auto" else name
    if not whole and name in ("splash", "triton"):
        return "blockwise"  # a few queries over a cache have no blocks to skip
    if name == "triton" and (divided or window is not None or softcap is not None):
        lacks = "rows sharded over a context axis" if divided else "soft-caps" if window is None else "windows"
        _warn_once(f"the triton kernel does not support {lacks}: using blockwise attention in XLA, which is slower")
        return "blockwise"
    return name


@functools.cache
def _warn_once(text: str) -> None:
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
    """Attention [B, T, N, H] by the implementation that `choose` returns, each device on its own shard.

    Args:
      name: `model.attention`.
      context: `model.context_attention`, all_gather or ring: how to attend across the shards of a row.

    Raises:
      BadInput: key heads are sharded differently from query heads.
    """
    whole = q_BTNH.shape[1] == k_BSKH.shape[1]
    rows = layout.sharding_axes("act_length") if whole else ()
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
        k, v, all_keys = jax.tree.map(lambda x: gather_rows(x, rows), (k, v, keys))
        if name == "splash":
            shard = (jax.lax.axis_index(rows), jax.lax.axis_size(rows))
            return kernels.whole(q, k, v, queries, all_keys, window, softcap, shard)
        return _on_whole_rows(layout, name, q, k, v, queries, all_keys, window, softcap)

    batch = layout.sharding_axes("act_batch")
    query = PartitionSpec(batch, rows, layout.sharding_axes("heads"))
    key = PartitionSpec(batch, rows, layout.sharding_axes("kv_heads"))
    by_row = PartitionSpec(batch, rows)
    where: Any = TokenPositions(by_row, by_row)  # type: ignore[arg-type]
    run = jax.shard_map(
        on_shard,
        mesh=layout.mesh,  # type: ignore[arg-type]
        in_specs=(query, key, key, where, where),
        out_specs=query,
        # Leave the other axes to the compiler, except around custom kernels, which it cannot partition.
        axis_names=set(layout.mesh.axis_names)  # type: ignore[union-attr]
        if name in ("splash", "triton")
        else {axis for axes in (batch, rows, layout.sharding_axes("heads")) for axis in axes},
        check_vma=False,
    )
    return run(q_BTNH, k_BSKH, v_BSKH, queries, keys)


def _on_whole_rows(layout: Layout, name, q, k, v, queries, keys, window, softcap):
    if name == "splash":
        return splash.for_platform(layout.platform).whole(
            q, k, v, queries, keys, window, softcap
        )  # names its own residuals
    if name == "triton":
        return checkpoint_name(triton(q, k, v, queries, keys, interpret=layout.platform != "gpu"), KEPT)
    function = {"reference": reference, "blockwise": blockwise.blockwise}[name]
    return checkpoint_name(function(q, k, v, queries, keys, window, softcap), KEPT)


def _own_key_heads(layout: Layout, groups: int, q, k, v):
    """The key and value heads that this device's query heads need, where KV heads are replicated."""
    heads, kv_heads = layout.sharding_axes("heads"), layout.sharding_axes("kv_heads")
    if kv_heads == heads:
        return k, v
    if kv_heads:
        raise BadInput(
            f"sharding.kv_heads is {'+'.join(kv_heads)!r} and sharding.heads {'+'.join(heads) or 'none'!r}: key heads "
            "must be sharded like their query heads, or replicated. Set --sharding.kv-heads none"
        )
    mine = q.shape[2]
    first = jax.lax.axis_index(heads) * mine
    if mine % groups and groups % mine:
        return tuple(jnp.take(x, (first + jnp.arange(mine)) // groups, axis=2) for x in (k, v))
    count = max(1, mine // groups)
    return tuple(jax.lax.dynamic_slice_in_dim(x, first // groups, count, 2) for x in (k, v))
