import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sft_jax.config import Sharding
from sft_jax.model.architecture import split_name
from sft_jax.model.decoder import abstract_parameters
from sft_jax.parallel.rules import axis_parts, shardings
from sft_jax.weights.fingerprint import weights_fingerprint


def test_every_mesh_gives_the_same_fingerprint_also_with_rows_added_to_the_vocabulary(tiny, tiny_parameters, mesh_of):
    alone = weights_fingerprint(tiny_parameters)
    rules = Sharding(heads="none", kv_heads="none", mlp="none")
    for sizes in ({"fsdp": 8}, {"fsdp": 2, "tensor": 3}):
        mesh = mesh_of(**sizes)
        wanted = tiny.padded_to(axis_parts("vocab", rules, mesh))
        shapes, axes = abstract_parameters(wanted)
        where = shardings({name: shape.shape for name, shape in shapes.items()}, axes, mesh, rules)
        placed = {}
        for name, value in tiny_parameters.items():
            more = shapes[name].shape[0] - value.shape[0]
            padded = np.pad(value, [(0, more)] + [(0, 0)] * (value.ndim - 1))
            placed[name] = jax.device_put(padded, where[name])
        assert weights_fingerprint(placed) == alone
    assert wanted.rows > tiny.rows


@pytest.mark.parametrize("change", ["bit", "swap", "name"])
def test_another_bit_place_or_name_gives_another_fingerprint(tiny_parameters, change):
    name = "layers.0:3.mlp.up.kernel"
    changed = dict(tiny_parameters)
    if change == "bit":
        changed[name] = changed[name].at[1, 2, 3].set(jnp.nextafter(changed[name][1, 2, 3], jnp.inf))
    elif change == "swap":
        changed[name] = changed[name][::-1]
    else:
        up, gate = name, name.replace("up", "gate")
        changed[up], changed[gate] = changed[gate], changed[up]
    assert weights_fingerprint(changed) != weights_fingerprint(tiny_parameters)


def test_how_layers_are_stacked_does_not_matter(tiny, tiny_parameters):
    cut = dataclasses.replace(tiny, cuts=(1,))
    apart = {}
    for name, value in tiny_parameters.items():
        layers, suffix = split_name(name)
        if layers is None:
            apart[name] = value
        else:
            apart |= {f"layers.0.{suffix}": value[0], f"layers.1:3.{suffix}": value[1:]}
    assert apart.keys() == abstract_parameters(cut)[0].keys()
    assert weights_fingerprint(apart) == weights_fingerprint(tiny_parameters)
