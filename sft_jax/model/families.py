"""Supported model families: Hugging Face's config.json <-> `Architecture`, and GGUF metadata -> config.json.

A family is a row of `FAMILIES`: its names, transformers' defaults for keys missing in config.json, and where it has
biases and norms. Everything else is shared.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sft_jax.errors import BadInput
from sft_jax.model.architecture import Architecture, LayerSpec, Rope

Config = dict[str, Any]
"""The content of a config.json."""


@dataclass(frozen=True)
class Family:
    """One `model_type` of transformers."""

    class_name: str
    """Class of the language model; `reward_class` is that of the reward model."""
    defaults: Config
    """Defaults of transformers (5.23, `configuration_*.py`) for keys missing in config.json."""
    qkv_bias: bool | None = None
    """None: the config's `attention_bias` decides for query, key, value and output."""
    qk_norm: bool = False
    windows: bool = False
    """Reads use_sliding_window, sliding_window, max_window_layers and layer_types."""

    @property
    def reward_class(self) -> str:
        return self.class_name.replace("ForCausalLM", "ForSequenceClassification")


_DEFAULTS = {
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "mlp_bias": False,
    "num_key_value_heads": None,
    "head_dim": None,
    "rope_theta": 10_000.0,
    "partial_rotary_factor": 1.0,
}
_QWEN_DEFAULTS = {
    **_DEFAULTS,
    "max_position_embeddings": 32_768,
    "num_key_value_heads": 32,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
    "layer_types": None,
}

FAMILIES = {
    "llama": Family("LlamaForCausalLM", {**_DEFAULTS, "max_position_embeddings": 2048}),
    "qwen2": Family("Qwen2ForCausalLM", _QWEN_DEFAULTS, qkv_bias=True, windows=True),
    "qwen3": Family("Qwen3ForCausalLM", {**_QWEN_DEFAULTS, "head_dim": 128}, qk_norm=True, windows=True),
}
"""model_type -> family. Llama covers Llama 2, 3, 3.1, 3.2 and SmolLM2; Qwen2 also Qwen2.5; Qwen3 its dense models."""

ROPE_KINDS = ("default", "linear", "llama3")

_SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")

_NUMBER, _OPTIONAL_INT, _OPTIONAL_OBJECT = (int, float), (int, type(None)), (dict, type(None))
_TYPES: dict[str, tuple[type, ...]] = {
    "max_position_embeddings": (int,),
    "num_key_value_heads": _OPTIONAL_INT,
    "head_dim": _OPTIONAL_INT,
    "rms_norm_eps": _NUMBER,
    "rope_theta": _NUMBER,
    "rope_scaling": _OPTIONAL_OBJECT,
    "rope_parameters": _OPTIONAL_OBJECT,
    "quantization_config": _OPTIONAL_OBJECT,
}
"""Types of further config.json keys, checked because people edit these files by hand."""


def family_of(config: Config, origin: str) -> str:
    """The key in `FAMILIES` for a config.json.

    Raises:
      BadInput: an unsupported architecture or none; lists the supported ones.
    """
    by_class = {kind: name for name, family in FAMILIES.items() for kind in (family.class_name, family.reward_class)}
    found = config.get("architectures") or []
    found = [found] if isinstance(found, str) else found
    if not found and config.get("model_type") in FAMILIES:
        return config["model_type"]
    if len(found) == 1 and found[0] in by_class:
        return by_class[found[0]]
    named = ", ".join(found) if found else f"model_type {config.get('model_type')!r}"
    raise BadInput(f"{origin}: architecture {named} is not supported. Supported: {', '.join(sorted(by_class))}.")


def architecture_of(config: Config, origin: str) -> Architecture:
    """The decoder that a config.json describes.

    Raises:
      BadInput: an unsupported architecture, activation, RoPE type, quantisation or size; names `origin`, the key, the
        value and what is supported.
    """
    family = FAMILIES[family_of(config, origin)]
    given: Config = {**family.defaults, **config}
    missing = [key for key in _SIZES if not isinstance(given.get(key), int)]
    if missing:
        raise BadInput(f"{origin}: config.json is missing {', '.join(missing)}")
    for key, kinds in _TYPES.items():
        if not isinstance(given.get(key), (*kinds, type(None)) if key not in given else kinds):
            expected = " or ".join("null" if kind is type(None) else kind.__name__ for kind in kinds)
            raise BadInput(f"{origin}: config.json has {key} {given[key]!r}, expected {expected}")
    _refuse_what_differs(given, origin)
    reward = is_reward(config)
    if reward and labels_of(config) != 1:
        raise BadInput(f"{origin}: a classifier with {labels_of(config)} labels; a reward model has one (num_labels 1)")
    heads, layers = given["num_attention_heads"], given["num_hidden_layers"]
    biased, rope = bool(given["attention_bias"]), _rope(given, origin)
    windows = _windows(given, layers, origin) if family.windows else (None,) * layers
    values: Config = {
        "vocab": given["vocab_size"],
        "embed": given["hidden_size"],
        "mlp": given["intermediate_size"],
        "layers": tuple(LayerSpec(window, rope) for window in windows),
        "heads": heads,
        "kv_heads": given["num_key_value_heads"] or heads,
        "head_dim": given["head_dim"] or given["hidden_size"] // heads,
        "max_positions": given["max_position_embeddings"],
        "norm_eps": given["rms_norm_eps"],
        "tied": bool(given["tie_word_embeddings"]),
        "qkv_bias": biased if family.qkv_bias is None else family.qkv_bias,
        "output_bias": biased if family.qkv_bias is None else False,
        "mlp_bias": bool(given["mlp_bias"]) and not family.windows,
        "qk_norm": family.qk_norm,
        "reward": reward,
    }
    try:
        return Architecture(**values)
    except BadInput as error:
        raise BadInput(f"{origin}: {error}") from error


def is_reward(config: Config) -> bool:
    """Whether a config.json describes a model with a scalar head."""
    found = config.get("architectures") or []
    found = [found] if isinstance(found, str) else found
    return any(str(name).endswith("ForSequenceClassification") for name in found)


def labels_of(config: Config) -> int:
    """Number of labels of a classifier; transformers defaults to two."""
    labels = config.get("id2label")
    return len(labels) if isinstance(labels, dict) else config.get("num_labels", 2)


def as_reward(config: Config, model_type: str) -> Config:
    """The config.json of a reward model with this decoder, as transformers writes it."""
    labels: Config = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    # transformers rejects problem_type single_label_classification with one label.
    kept = {key: value for key, value in config.items() if key not in ("num_labels", "problem_type")}
    return {**kept, "architectures": [FAMILIES[model_type].reward_class], "model_type": model_type, **labels}


def _refuse_what_differs(given: Config, origin: str) -> None:
    if given["hidden_act"] != "silu":
        raise BadInput(f"{origin}: hidden_act {given['hidden_act']!r} is not supported. Supported: 'silu'.")
    if given["attention_dropout"]:
        raise BadInput(f"{origin}: attention_dropout is {given['attention_dropout']}, supported: 0.0")
    if given.get("quantization_config"):
        method = given["quantization_config"].get("quant_method")
        raise BadInput(
            f"{origin}: the checkpoint is quantised (quant_method {method!r}); use one in float32, float16 or bfloat16"
        )


def _rope(given: Config, origin: str) -> Rope:
    """RoPE settings from transformers 5's rope_parameters, or the older rope_theta and rope_scaling.

    As in transformers (`RotaryEmbeddingConfigMixin`), a non-empty rope_scaling overrides rope_parameters, theta inside
    the dict overrides the top-level one, and the original length defaults to max_position_embeddings.
    """
    scaling = given.get("rope_scaling") or given.get("rope_parameters") or {}
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    partial = scaling.get("partial_rotary_factor") or given["partial_rotary_factor"] or 1.0
    nested = [key for key, value in scaling.items() if isinstance(value, dict)]
    if nested:
        raise BadInput(f"{origin}: RoPE parameters that differ by layer ({', '.join(nested)}) are not supported")
    if kind not in ROPE_KINDS:
        raise BadInput(f"{origin}: RoPE type {kind!r} is not supported. Supported: {', '.join(ROPE_KINDS)}.")
    if partial != 1.0:
        raise BadInput(f"{origin}: partial_rotary_factor is {partial}, supported: 1.0")
    theta = float(scaling.get("rope_theta") or given["rope_theta"])
    if kind == "default":
        return Rope(theta)
    needed = ("factor",) if kind == "linear" else ("factor", "low_freq_factor", "high_freq_factor")
    missing = [key for key in needed if not isinstance(scaling.get(key), int | float)]
    if missing:
        raise BadInput(f"{origin}: RoPE type {kind!r} needs {', '.join(missing)}; found only {', '.join(scaling)}")
    if kind == "linear":
        return Rope(theta, kind, float(scaling["factor"]))
    original = (
        given.get("original_max_position_embeddings")
        or scaling.get("original_max_position_embeddings")
        or given["max_position_embeddings"]
    )
    low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
    return Rope(theta, kind, float(scaling["factor"]), low, high, int(original))


def _windows(given: Config, layers: int, origin: str) -> tuple[int | None, ...]:
    """Sliding window of each Qwen layer, from layer_types if given, else for layers from max_window_layers on."""
    window = given["sliding_window"] if given["use_sliding_window"] else None
    types = given["layer_types"]
    if types is None:
        types = ["full_attention" if i < given["max_window_layers"] else "sliding_attention" for i in range(layers)]
    unknown = sorted(set(types) - {"full_attention", "sliding_attention"})
    if unknown or len(types) != layers:
        raise BadInput(
            f"{origin}: layer_types has {len(types)} entries for {layers} layers, of kinds "
            f"{', '.join(sorted(set(types)))}. Supported: full_attention, sliding_attention, one per layer."
        )
    return tuple(window if kind == "sliding_attention" else None for kind in types)


def config_of(a: Architecture, model_type: str) -> Config:
    """A config.json for this decoder, with keys that every release of transformers reads.

    Raises:
      BadInput: the family cannot express the decoder's biases, norms, windows or soft-caps.
    """
    family = FAMILIES[model_type]
    windows = [spec.window for spec in a.layers if spec.window is not None]
    rope = a.layers[0].rope or Rope()
    config: Config = {
        "architectures": [family.class_name],
        "model_type": model_type,
        "vocab_size": a.vocab,
        "hidden_size": a.embed,
        "intermediate_size": a.mlp,
        "num_hidden_layers": a.depth,
        "num_attention_heads": a.heads,
        "num_key_value_heads": a.kv_heads,
        "head_dim": a.head_dim,
        "max_position_embeddings": a.max_positions,
        "hidden_act": "silu",
        "rms_norm_eps": a.norm_eps,
        "tie_word_embeddings": a.tied,
        "rope_theta": rope.theta,
        "rope_scaling": _rope_scaling(rope),
    }
    if family.qkv_bias is None:
        config["attention_bias"] = a.qkv_bias
    if family.windows:
        config["use_sliding_window"] = bool(windows)
        config["sliding_window"] = max(windows) if windows else None
        config["max_window_layers"] = next((i for i, spec in enumerate(a.layers) if spec.window), a.depth)
        config["layer_types"] = ["sliding_attention" if spec.window else "full_attention" for spec in a.layers]
    else:
        config["mlp_bias"] = a.mlp_bias
    if a.reward:
        config = as_reward(config, model_type)
    described = architecture_of(config, f"the {model_type} family")
    lost = [f"{name} {value!r}" for name, value in vars(a.plain).items() if value != getattr(described, name)]
    if lost:
        raise BadInput(f"the {model_type} family cannot express a decoder with {', '.join(lost)}")
    return config


def _rope_scaling(rope: Rope) -> Config | None:
    if rope.kind == "default":
        return None
    scaling: Config = {"rope_type": rope.kind, "factor": rope.factor}
    if rope.kind == "llama3":
        scaling["low_freq_factor"] = rope.low_freq_factor
        scaling["high_freq_factor"] = rope.high_freq_factor
        scaling["original_max_position_embeddings"] = rope.original_positions
    return scaling


def config_from_gguf(
    metadata: Mapping[str, Any],
    shapes: Mapping[str, Sequence[int]],
    rope_factors: np.ndarray | None,
    origin: str,
) -> Config:
    """The config.json equivalent to a GGUF file's metadata (keys: llama.cpp's gguf-py/gguf/constants.py).

    Args:
      metadata: key -> value.
      shapes: GGUF tensor name -> shape, outermost dimension first.
      rope_factors: `rope_freqs.weight`, float32 [H/2], if the file has it (Llama 3.1 and later).

    Raises:
      BadInput: an unsupported architecture or RoPE scaling (lists the supported ones), or a missing key.
    """
    name = metadata.get("general.architecture")
    if name not in FAMILIES:
        raise BadInput(f"{origin}: GGUF architecture {name!r} is not supported. Supported: {', '.join(FAMILIES)}.")
    keys = {
        "hidden_size": "embedding_length",
        "intermediate_size": "feed_forward_length",
        "num_hidden_layers": "block_count",
        "num_attention_heads": "attention.head_count",
        "max_position_embeddings": "context_length",
        "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    }
    missing = [f"{name}.{key}" for key in keys.values() if f"{name}.{key}" not in metadata]
    missing += [tensor for tensor in ("token_embd.weight",) if tensor not in shapes]
    if missing:
        raise BadInput(f"{origin}: the GGUF file is missing {', '.join(missing)}")
    config: Config = {"architectures": [FAMILIES[name].class_name], "model_type": name}
    config |= {ours: _decimal(metadata[f"{name}.{theirs}"]) for ours, theirs in keys.items()}
    heads = config["num_attention_heads"]
    config["num_key_value_heads"] = metadata.get(f"{name}.attention.head_count_kv", heads)
    config["head_dim"] = metadata.get(f"{name}.attention.key_length", config["hidden_size"] // heads)
    config["vocab_size"] = int(shapes["token_embd.weight"][0])
    config["hidden_act"] = "silu"
    config["tie_word_embeddings"] = "output.weight" not in shapes
    config["rope_theta"] = _decimal(metadata.get(f"{name}.rope.freq_base", 10_000.0))
    config["rope_scaling"] = _gguf_scaling(metadata, name, config, rope_factors, origin)
    if FAMILIES[name].qkv_bias is None:
        config["attention_bias"] = "blk.0.attn_q.bias" in shapes
    if not FAMILIES[name].windows:
        config["mlp_bias"] = "blk.0.ffn_down.bias" in shapes
    for token in ("bos", "eos"):
        config[f"{token}_token_id"] = metadata.get(f"tokenizer.ggml.{token}_token_id")
    config["pad_token_id"] = metadata.get("tokenizer.ggml.padding_token_id")
    return config


def _decimal(value: Any) -> Any:
    """The shortest decimal of a float32: GGUF stores 1e-05 as 9.999999747378752e-06."""
    return float(str(np.float32(value))) if isinstance(value, float) else value


def _gguf_scaling(metadata, name: str, config: Config, factors: np.ndarray | None, origin: str) -> Config | None:
    kind = metadata.get(f"{name}.rope.scaling.type", "none")
    rotated = metadata.get(f"{name}.rope.dimension_count", config["head_dim"])
    if rotated != config["head_dim"]:
        raise BadInput(
            f"{origin}: RoPE rotates {rotated} of {config['head_dim']} elements per head; partial RoPE is not supported"
        )
    if kind == "linear":
        return {"rope_type": "linear", "factor": _decimal(metadata[f"{name}.rope.scaling.factor"])}
    if kind != "none":
        raise BadInput(f"{origin}: RoPE scaling {kind!r} is not supported. Supported: none, linear, llama3.")
    return None if factors is None else _llama3_scaling(factors, config, origin)


def _llama3_scaling(factors: np.ndarray, config: Config, origin: str) -> Config:
    """Recover the llama3 parameters from `rope_freqs.weight`, which holds only the divisor of each frequency.

    llama.cpp writes `factor` for long wavelengths, 1 for short ones, and 1 / ((1 - s) / factor + s) in between
    (`convert_hf_to_gguf.py`, LlamaModel.generate_extra_tensors). Every published Llama has low 1, high 4 and 8,192
    original positions, so we try those and accept them only if they reproduce the tensor.
    """
    factors = np.asarray(factors, np.float64).reshape(-1)
    factor, low, high, original = float(np.round(factors.max(), 4)), 1.0, 4.0, 8192
    pairs = config["head_dim"] // 2
    wavelengths = 2 * math.pi * config["rope_theta"] ** (np.arange(pairs) / pairs)
    smooth = np.clip((original / wavelengths - low) / (high - low), 0.0, 1.0)
    expected = 1.0 / ((1 - smooth) / factor + smooth)
    if factors.shape != expected.shape or not np.allclose(factors, expected, rtol=1e-4):
        raise BadInput(
            f"{origin}: rope_freqs.weight ({factors.size} divisors from {factors.min():g} to {factors.max():g}) is not "
            f"Llama 3.1's RoPE scaling with low_freq_factor 1, high_freq_factor 4 and 8,192 original positions, and "
            f"the file does not store the parameters. Use the model's Hugging Face directory instead."
        )
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }
