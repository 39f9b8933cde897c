"""Rematerialisation: what a layer saves for its backward pass. Everything else is recomputed there."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sft_jax.model.attention.reference import KEPT

_policies = jax.checkpoint_policies
_attention = _policies.save_only_these_names(KEPT)

OF_ATTENTION = ("query", "key", "value", KEPT)
"""What the policies `attention` and `offload` save besides the layer's input, the latter on the host. Attention is not
recomputed; every other product is."""

POLICIES = {
    # every intermediate result: no recomputation
    "none": None,
    # the result of every matrix product, and attention's output
    "dots": _policies.save_from_both_policies(_policies.dots_saveable, _attention),
    # the results of products with weights, and attention's output; not scores or other products of activations
    "minimal": _policies.save_from_both_policies(_policies.dots_with_no_batch_dims_saveable, _attention),
    # the layer's input, queries, keys, values and attention's output; the MLP, by far the widest, is recomputed
    "attention": _policies.save_only_these_names(*OF_ATTENTION),
    # the layer's input only: least memory, the whole forward pass is recomputed
    "full": _policies.nothing_saveable,
    # as attention, but in host memory
    "offload": _policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=["layer_input", *OF_ATTENTION],
        offload_src="device",
        offload_dst="pinned_host",
    ),
}
"""`model.remat` -> policy for `jax.checkpoint` around one layer."""


def rematerialised(run: Callable[..., Any], remat: str, alone: bool, platform: str) -> Callable[..., Any]:
    """Wrap `run(layer, x, ...)`, one layer, to save for its backward pass only what `remat` allows.

    Args:
      run: differentiated with respect to the layer's parameters and x only.
      alone: whether the layer is the whole body of a scan. There the compiler sees forward and backward pass in
        separate loops. Elsewhere, CSE would merge the recomputation with the forward pass and keep everything after
        all, or the scheduler would recompute all layers before the first backward pass.
      platform: cpu, gpu or tpu: the compilation target.
    """
    if remat == "none":
        return run
    if remat == "full" and not alone and platform == "cpu":
        return _recomputed_in_turn(run)
    return jax.checkpoint(run, policy=POLICIES[remat], prevent_cse=not alone)


def _recomputed_in_turn(run: Callable[..., Any]) -> Callable[..., Any]:
    """Full rematerialisation for XLA's CPU compiler, which drops optimization barriers before it schedules.

    The recomputation depends on the cotangent through a comparison that is false only for NaN. So it cannot start
    before the backward pass reaches this layer, and its values are bit-identical.
    """

    @jax.custom_vjp
    def layer_of(layer, x, *fixed):
        return run(layer, x, *fixed)

    def forward(layer, x, *fixed):
        return run(layer, x, *fixed), (layer, x, fixed)

    def backward(saved, cotangents):
        layer, x, fixed = saved
        one = jax.tree.leaves(cotangents)[0].ravel()[0]
        x = jnp.where(one == one, x, jnp.nan)
        gradients = jax.vjp(lambda layer, x: run(layer, x, *fixed), layer, x)[1](cotangents)
        return *gradients, *(None for _ in fixed)

    layer_of.defvjp(forward, backward)
    return layer_of
