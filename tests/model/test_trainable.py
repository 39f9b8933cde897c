import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest

from sft_jax.errors import BadInput
from sft_jax.losses.cross_entropy import cross_entropy_objective
from sft_jax.model.decoder import abstract_parameters
from sft_jax.model.layers import Compute
from sft_jax.model.leaves import Int8, LowRank
from sft_jax.model.trainable import cut_stacks, split_parameters, trainable_names
from sft_jax.train.sharding import abstract_batch, batch_shapes_of
from sft_jax.train.step import accumulate


def test_no_pattern_trains_everything(tiny):
    assert trainable_names((), tiny) == abstract_parameters(tiny)[0].keys()
    assert cut_stacks((), tiny) == tiny


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (("embedding",), {"embedding"}),
        (("*norm*",), {"final_norm.scale", "layers.0:3.attention_norm.scale", "layers.0:3.mlp_norm.scale"}),
        (("layers.1-2.mlp.up",), {"layers.1:3.mlp.up.kernel"}),
        (("layers.1.mlp.up", "final_norm"), {"layers.1.mlp.up.kernel", "final_norm.scale"}),
        (("layers.*.attention.query",), {"layers.0:3.attention.query.kernel"}),
    ],
)  # fmt: skip
def test_patterns_name_parameters_layer_by_layer(tiny, patterns, expected):
    assert trainable_names(patterns, cut_stacks(patterns, tiny)) == expected


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("head", "this model ties its head to the embedding. Use 'embedding'"),
        ("layers.2-3", "the model has layers 0 to 2"),
        ("embeding", "Did you mean 'embedding'"),
        ("*.moe.*", "matches no parameter of this model"),
    ],
)
def test_a_pattern_that_names_nothing_is_refused(tiny, pattern, message):
    with pytest.raises(BadInput, match=re.escape(message)):
        cut_stacks((pattern,), tiny)


def test_an_adapter_trains_alone_and_int8_never_does(tiny):
    adapted = replace(tiny, storage=(("*query.kernel", LowRank(2, 2.0)),))
    names = {f"layers.0:3.attention.query.kernel.lora_{x}" for x in "ab"}
    assert trainable_names((), adapted) == names
    assert trainable_names(("*norm*",), adapted) > names
    stored = replace(tiny, storage=(("*.kernel", Int8()),))
    with pytest.raises(BadInput, match=r"attention.key.kernel is stored as int8 and cannot train.*--train.trainable"):
        trainable_names((), stored)
    assert trainable_names(("*norm*",), stored)


def test_what_is_frozen_has_no_gradient_in_the_compiled_program(tiny, make_batches):
    """Sizes that no activation has: the frozen layers' gradient would be an array of their shape."""
    a = cut_stacks(("layers.2", "final_norm"), replace(tiny, mlp=88))
    trainable, frozen = split_parameters(abstract_parameters(a)[0], trainable_names(("layers.2", "final_norm"), a))
    assert "layers.0:2.mlp.up.kernel" in frozen and "layers.2.mlp.up.kernel" in trainable
    batch = abstract_batch(batch_shapes_of(make_batches()))

    def text(trainable, frozen) -> str:
        objective = cross_entropy_objective(a, Compute(), 16)

        def gradient(trainable, frozen, batch):
            return accumulate(objective, trainable, frozen, batch)[1]

        return jax.jit(gradient).lower(trainable, frozen, batch).compile().as_text()

    def written(text: str, shape: str) -> list[str]:
        given = (" parameter(", " get-tuple-element(", " bitcast(", " copy(")
        return [
            line for line in text.splitlines() if f"= f32[{shape}]" in line and not any(one in line for one in given)
        ]

    part, whole = text(trainable, frozen), text({**trainable, **frozen}, {})
    assert written(whole, "2,32,88") and not written(part, "2,32,88"), "of the two frozen layers"
    assert written(part, "32,88"), "of the trained one"
    assert jnp.dtype("float32") == trainable["final_norm.scale"].dtype
