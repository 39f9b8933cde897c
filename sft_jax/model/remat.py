"""What a layer keeps for its backward pass; everything else is computed again there."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sft_jax.model.attention.reference import KEPT

_policies = jax.checkpoint_policies
_attention = _policies.save_only_these_names(KEPT)

OF_ATTENTION = ("query", "key", "value", KEPT)
"""What `attention` keeps beside the layer's input, and `offload` on the host: every product between them is computed
again, attention is not."""

POLICIES = {
    # every intermediate result: no work is done twice
    "none": None,
    # the result of every matrix product, and attention's output
    "dots": _policies.save_from_both_policies(_policies.dots_saveable, _attention),
    # the results of products with weights, and attention's output; scores and other products of activations are not
    "minimal": _policies.save_from_both_policies(_policies.dots_with_no_batch_dims_saveable, _attention),
    # the layer's input, queries, keys, values and attention's output: the MLP, by far the widest, is done again
    "attention": _policies.save_only_these_names(*OF_ATTENTION),
    # the layer's input: the smallest memory, and the whole forward pass is done again
    "full": _policies.nothing_saveable,
    # the same as attention, in the host's memory
    "offload": _policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=["layer_input", *OF_ATTENTION],
        offload_src="device",
        offload_dst="pinned_host",
    ),
}
"""`model.remat` -> policy of `jax.checkpoint` around one layer."""


def rematerialised(run: Callable[..., Any], remat: str, alone: bool, platform: str) -> Callable[..., Any]:
    """`run(layer, x, ...)`, one layer, which keeps for its backward pass what `remat` says.

    Args:
      run: differentiated with respect to the layer's parameters and x alone.
      alone: whether it is all that the body of a loop does. There the compiler sees the forward pass of a layer apart
        from its backward pass. Elsewhere it would find the recomputation equal to the forward pass and keep everything
        after all, or recompute all layers before the first of their backward passes.
      platform: cpu, gpu or tpu, of what is compiled for.
    """
    if remat == "none":
        return run
    if remat == "full" and not alone and platform == "cpu":
        return _recomputed_in_turn(run)
    return jax.checkpoint(run, policy=POLICIES[remat], prevent_cse=not alone)


def _recomputed_in_turn(run: Callable[..., Any]) -> Callable[..., Any]:
    """`jax.checkpoint` of everything, for XLA's CPU compiler, which drops optimization barriers before it schedules.

    The recomputation depends on the cotangent by a comparison that only a NaN makes false: it cannot begin before the
    backward pass of the layer above has come so far, and its values are the same to the bit.
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
