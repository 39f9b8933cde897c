"""What each remat policy keeps of a layer, read from what JAX saves for the backward pass."""

import re

import jax
import jax.numpy as jnp
import pytest
from jax.ad_checkpoint import print_saved_residuals

from sft_jax.model.attention.reference import TokenPositions
from sft_jax.model.decoder import forward, initialise
from sft_jax.model.layers import Compute
from sft_jax.model.remat import POLICIES


@pytest.fixture
def kept(tiny, capsys):
    """(policy, attention) -> shapes kept by a layer, host arrays marked, without weights and arguments."""

    def run(remat, attention="blockwise"):
        parameters = jax.eval_shape(lambda: initialise(tiny, 0))
        rows = jax.ShapeDtypeStruct((3, 128), jnp.int32)
        compute = Compute(remat=remat, attention=attention, scan_layers=False)

        def loss(parameters, tokens):
            return forward(tiny, compute, parameters, tokens, TokenPositions(tokens, tokens))[0].sum()

        print_saved_residuals(loss, parameters, rows)
        lines = [line for line in capsys.readouterr().out.splitlines() if " squeeze " not in line]
        return {re.match(r"f32(?:<\w+>)?\[[\d,]*\]", line)[0] for line in lines if line.startswith("f32")}

    return run


LAYER_INPUT, INNER, SCORES = "f32[3,128,32]", "f32[3,128,64]", "f32[3,2,2,64,128]"
QUERY, ATTENTION, SPLASH = "f32[3,128,4,8]", "f32[3,128,4,8]", "f32[3,4,128,8]"


def test_full_keeps_the_layers_input_alone(kept):
    found = kept("full")
    assert LAYER_INPUT in found and not {INNER, SCORES, QUERY} & found


def test_minimal_keeps_products_with_weights_and_attention_but_no_scores(kept):
    found = kept("minimal")
    assert {LAYER_INPUT, INNER, QUERY} <= found and SCORES not in found
    assert SPLASH in kept("minimal", "splash")


def test_attention_keeps_its_own_and_nothing_of_the_mlp(kept):
    found = kept("attention")
    assert {LAYER_INPUT, QUERY} <= found and not {INNER, SCORES} & found
    assert SPLASH in kept("attention", "splash")


def test_dots_keeps_the_scores_too(kept):
    assert {LAYER_INPUT, INNER, QUERY, SCORES} <= kept("dots")


def test_offload_keeps_its_names_on_the_host_and_no_product_besides(kept):
    found = kept("offload")
    host = {shape for shape in found if "<host>" in shape}
    assert {"f32<host>[3,128,32]", "f32<host>[3,128,4,8]", "f32<host>[3,128,2,8]"} == host
    assert not {INNER, SCORES, QUERY} & found
    assert "f32<host>[3,4,128,8]" in kept("offload", "splash"), "the kernel's own output"


def test_none_keeps_more_than_any_other(kept):
    everything = kept("none")
    assert all(len(kept(policy)) < len(everything) for policy in POLICIES if policy not in ("none", "dots"))
