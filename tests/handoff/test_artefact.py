import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sft_jax.config import Sharding
from sft_jax.handoff.artefact import describe_handoff, weights_fingerprint
from sft_jax.model.decoder import abstract_parameters
from sft_jax.parallel.rules import axis_parts, shardings


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
    name = "periods.0.mlp.up.kernel"
    changed = dict(tiny_parameters)
    if change == "bit":
        changed[name] = changed[name].at[1, 2, 3].set(jnp.nextafter(changed[name][1, 2, 3], jnp.inf))
    elif change == "swap":
        changed[name] = changed[name][::-1]
    else:
        up, gate = name, name.replace("up", "gate")
        changed[up], changed[gate] = changed[gate], changed[up]
    assert weights_fingerprint(changed) != weights_fingerprint(tiny_parameters)


def test_the_artefact_names_what_an_rl_run_needs(tokenizer):
    about = describe_handoff(tokenizer, (257,), "ab", "checkpoints/3", "model", "")
    assert about["stop_tokens"] == ["<|im_end|>"] and about["stop_token_ids"] == [257]
    assert about["chat_template"] == tokenizer.chat_template and about["weights_fingerprint"] == "ab"
