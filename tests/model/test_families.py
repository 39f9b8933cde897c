"""config.json <-> Architecture."""

import dataclasses
import json
from pathlib import Path

import pytest

from sft_jax.errors import BadInput
from sft_jax.model.architecture import Architecture, LayerSpec, Rope
from sft_jax.model.families import architecture_of, config_of

GOLDEN = Path(__file__).parents[1] / "weights" / "golden"

SMOLLM2 = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "hidden_act": "silu",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "max_position_embeddings": 8192,
    "model_type": "llama",
    "num_attention_heads": 9,
    "num_hidden_layers": 30,
    "num_key_value_heads": 3,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 100000,
    "tie_word_embeddings": True,
    "vocab_size": 49152,
}
LLAMA31 = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 131072,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "vocab_size": 128256,
}
QWEN2 = {
    "architectures": ["Qwen2ForCausalLM"],
    "hidden_size": 896,
    "intermediate_size": 4864,
    "max_position_embeddings": 32768,
    "max_window_layers": 24,
    "model_type": "qwen2",
    "num_attention_heads": 14,
    "num_hidden_layers": 24,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
QWEN3 = {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "head_dim": 128,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "max_position_embeddings": 40960,
    "model_type": "qwen3",
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000,
    "tie_word_embeddings": True,
    "vocab_size": 151936,
}


def test_smollm2():
    layers = (LayerSpec(rope=Rope(100_000.0)),) * 30
    expected = Architecture(49152, 576, 1536, layers, 9, 3, 64, 8192, tied=True)
    assert architecture_of(SMOLLM2, "x") == expected


def test_llama_31_scales_its_low_frequencies():
    layer = LayerSpec(rope=Rope(500_000.0, "llama3", 8.0, 1.0, 4.0, 8192))
    expected = Architecture(128256, 4096, 14336, (layer,) * 32, 32, 8, 128, 131072, norm_eps=1e-5)
    assert architecture_of(LLAMA31, "x") == expected


def test_transformers_5_writes_the_same_under_rope_parameters():
    new = {key: value for key, value in LLAMA31.items() if not key.startswith("rope_")}
    new["rope_parameters"] = {**LLAMA31["rope_scaling"], "rope_theta": 500000.0}
    assert architecture_of(new, "x") == architecture_of(LLAMA31, "x")


def test_the_older_key_type_names_the_scaling_too():
    config = {**SMOLLM2, "rope_scaling": {"type": "linear", "factor": 2}}
    assert architecture_of(config, "x").layers[0].rope == Rope(100_000.0, "linear", 2.0)


def test_llama3_scaling_without_an_original_length_starts_from_the_models_own():
    scaling = {k: v for k, v in LLAMA31["rope_scaling"].items() if k != "original_max_position_embeddings"}
    assert architecture_of({**LLAMA31, "rope_scaling": scaling}, "x").layers[0].rope.original_positions == 131072


def test_llama_biases_are_on_all_four_attention_projections_and_the_mlp():
    a = architecture_of({**SMOLLM2, "attention_bias": True, "mlp_bias": True}, "x")
    assert (a.qkv_bias, a.output_bias, a.mlp_bias) == (True, True, True)


def test_qwen2_has_biases_on_query_key_and_value_only():
    a = architecture_of({**QWEN2, "attention_bias": True, "mlp_bias": True}, "x")  # keys that this family does not read
    assert (a.qkv_bias, a.output_bias, a.mlp_bias, a.qk_norm, a.head_dim) == (True, False, False, False, 64)


def test_qwen3_normalises_queries_and_keys_of_a_head_size_of_its_own():
    a = architecture_of(QWEN3, "x")
    assert (a.qkv_bias, a.output_bias, a.qk_norm, a.head_dim) == (False, False, True, 128)


def windows(config):
    return [layer.window for layer in architecture_of(config, "x").layers]


def test_a_window_that_is_not_used_is_none():
    types = ["sliding_attention"] * 24
    for config in ({**QWEN2, "max_window_layers": 4}, {**QWEN2, "layer_types": types}):
        assert windows(config) == [None] * 24


def test_windows_start_at_max_window_layers():
    config = {**QWEN2, "use_sliding_window": True, "sliding_window": 16, "num_hidden_layers": 4, "max_window_layers": 3}
    assert windows(config) == [None, None, None, 16]


def test_layer_types_name_the_windows_one_by_one():
    types = ["sliding_attention", "full_attention"] * 2 + ["sliding_attention"]
    config = {**QWEN2, "use_sliding_window": True, "sliding_window": 16, "num_hidden_layers": 5, "layer_types": types}
    assert windows(config) == [16, None, 16, None, 16]


def test_heads_without_a_number_of_kv_heads_are_multi_head_attention():
    config = {key: value for key, value in SMOLLM2.items() if key != "num_key_value_heads"}
    assert architecture_of(config, "x").kv_heads == 9


@pytest.mark.parametrize("config", [SMOLLM2, LLAMA31, QWEN2, QWEN3], ids=["smollm2", "llama31", "qwen2", "qwen3"])
def test_there_and_back_is_the_same_decoder(config):
    a = architecture_of(config, "x")
    assert architecture_of(config_of(a, config["model_type"]), "x") == a


@pytest.mark.parametrize("case", sorted(path.name for path in GOLDEN.iterdir()))
def test_there_and_back_with_the_configs_that_transformers_wrote(case):
    config = json.loads((GOLDEN / case / "config.json").read_text())
    a = architecture_of(config, case)
    assert architecture_of(config_of(a, config["model_type"]), case) == a


def test_a_family_refuses_a_decoder_it_cannot_express():
    a = dataclasses.replace(architecture_of(QWEN3, "x"), logit_softcap=30.0)
    with pytest.raises(
        BadInput, match=r"llama family cannot express a decoder with .*qk_norm True.*logit_softcap 30.0"
    ):
        config_of(a, "llama")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": ["MixtralForCausalLM"]}, "MixtralForCausalLM is not supported. Supported: Llama.*Qwen3"),
        ({"architectures": None, "model_type": "gpt2"}, "model_type 'gpt2' is not supported"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported. Supported: 'silu'"),
        (
            {"rope_scaling": {"type": "yarn", "factor": 4.0}},
            "'yarn' is not supported. Supported: default, linear, llama3",
        ),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "needs low_freq_factor, high_freq_factor"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, r"differ by layer \(full_attention\)"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5, supported: 1.0"),
        ({"attention_dropout": 0.1}, "attention_dropout is 0.1"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantised .quant_method 'gptq'"),
        ({"hidden_size": None, "vocab_size": None}, "config.json is missing vocab_size, hidden_size"),
        ({"num_key_value_heads": 2}, "some/model: 9 query heads are not a multiple of 2"),
    ],
)
def test_what_cannot_be_computed_is_refused_by_name(change, message):
    with pytest.raises(BadInput, match=message):
        architecture_of({**SMOLLM2, **change}, "some/model")


def test_layer_types_must_fit_the_layers():
    with pytest.raises(BadInput, match="layer_types has 1 entries for 24 layers, of kinds chunked_attention"):
        architecture_of({**QWEN2, "layer_types": ["chunked_attention"]}, "x")
