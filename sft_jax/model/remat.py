"""What a layer keeps for its backward pass; everything else is computed again there."""

import jax

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
"""`model.remat` -> policy of `jax.checkpoint` around a period of layers."""
