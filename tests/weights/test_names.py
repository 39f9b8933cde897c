"""The name table, read both ways."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft_jax.model.architecture import Architecture, LayerSpec
from sft_jax.weights.names import DECODER, Entry, sources_of, their_shape, their_slices, to_ours, to_theirs

SIZES = {"1": 1, "V": 11, "D": 6, "F": 10, "N": 4, "K": 2, "H": 3}
ENTRIES = {entry.ours: entry for entry in (*DECODER.top, *DECODER.layer)}


def tiny(**changes) -> Architecture:
    base = {"vocab": 11, "embed": 6, "mlp": 10, "layers": (LayerSpec(),) * 5, "heads": 4, "kv_heads": 2, "head_dim": 4}
    return Architecture(**{**base, "max_positions": 64, **changes})


def whole(entry: Entry) -> list[slice]:
    return [slice(0, SIZES[letter]) for letter in entry.letters]


def test_a_query_row_is_head_major():
    theirs = np.arange(4 * 3 * 6).reshape(12, 6)
    ours = to_ours(ENTRIES["attention.query.kernel"], SIZES, whole(ENTRIES["attention.query.kernel"]), theirs)
    assert ours.shape == (6, 4, 3)
    assert ours[5, 2, 1] == theirs[2 * 3 + 1, 5]


def test_an_output_column_is_head_major():
    theirs = np.arange(6 * 12).reshape(6, 12)
    ours = to_ours(ENTRIES["attention.output.kernel"], SIZES, whole(ENTRIES["attention.output.kernel"]), theirs)
    assert ours.shape == (4, 3, 6)
    assert ours[2, 1, 5] == theirs[5, 2 * 3 + 1]


@pytest.mark.parametrize("name", sorted(ENTRIES))
def test_there_and_back_is_the_identity(name):
    entry = ENTRIES[name]
    theirs = np.random.default_rng(0).normal(size=their_shape(entry, SIZES))
    back = to_theirs(entry, SIZES, to_ours(entry, SIZES, whole(entry), theirs))
    np.testing.assert_array_equal(back, theirs)


@given(st.sampled_from(sorted(ENTRIES)), st.data())
def test_any_part_read_alone_is_that_part_of_the_whole(name, data):
    entry = ENTRIES[name]
    theirs = np.arange(np.prod(their_shape(entry, SIZES))).reshape(their_shape(entry, SIZES))
    part = []
    for letter in entry.letters:
        start = data.draw(st.integers(0, SIZES[letter]))
        part.append(slice(start, data.draw(st.integers(start, SIZES[letter]))))
    read = theirs[their_slices(entry, SIZES, part)]
    expected = to_ours(entry, SIZES, whole(entry), theirs)[tuple(part)]
    np.testing.assert_array_equal(to_ours(entry, SIZES, part, read), expected)


def test_layers_go_round_the_period_and_the_rest_stands_apart():
    found = sources_of(tiny(layers=(LayerSpec(4), LayerSpec(), LayerSpec(4), LayerSpec(), LayerSpec(4))), "qwen2")
    up = {name: source.names for name, source in found.items() if name.endswith("mlp.up.kernel")}
    assert up == {
        "layers.0:3:2.mlp.up.kernel": ("model.layers.0.mlp.up_proj.weight", "model.layers.2.mlp.up_proj.weight"),
        "layers.1:4:2.mlp.up.kernel": ("model.layers.1.mlp.up_proj.weight", "model.layers.3.mlp.up_proj.weight"),
        "layers.4.mlp.up.kernel": ("model.layers.4.mlp.up_proj.weight",),
    }
    assert found["layers.4.mlp.up.kernel"].lead == () and found["layers.0:3:2.mlp.up.kernel"].lead == (2,)


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3"])
def test_every_switch_has_its_names(model_type):
    switches = {"qkv_bias": True, "output_bias": True, "mlp_bias": True, "qk_norm": True}
    names = [name for source in sources_of(tiny(**switches), model_type).values() for name in source.names]
    assert len(names) == len(set(names)) == 3 + 5 * len(DECODER.layer)
