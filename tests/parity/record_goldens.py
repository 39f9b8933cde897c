"""Record what transformers computes on tiny random models, so that `make test` compares with it without torch.

    .venv/bin/python -m tests.parity.record_goldens          (after `make parity` has installed torch; 10 s on a CPU)

writes `tests/weights/golden/<case>/`: a Hugging Face directory, and `logits.npz` with tokens int32 [1, T] and
logits float32 [1, T, V] of the eager float32 model.
"""

import shutil
from pathlib import Path

import numpy as np
import torch
import transformers

GOLDEN = Path(__file__).parents[1] / "weights" / "golden"
LENGTH = 64

SMALL = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}
"""With head_dim 8 the four wavelengths are 6, 63, 628 and 6,283 positions; 128 original positions leave the first,
interpolate the second and divide the others by the factor, and 64 positions show it."""

CASES = {
    "llama2": ("llama", {"num_key_value_heads": 4, "bos_token_id": 1, "eos_token_id": 2}),
    "llama3": ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0}, "eos_token_id": [2, 5]}),
    "llama31": ("llama", {"rope_parameters": LLAMA3_ROPE}),
    "llama32_tied": ("llama", {"rope_parameters": {**LLAMA3_ROPE, "factor": 32.0}, "tie_word_embeddings": True}),
    "llama_biased": (
        "llama",
        {
            "attention_bias": True,
            "mlp_bias": True,
            "head_dim": 16,
            "rope_parameters": {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0},
        },
    ),
    "qwen2_windows": (
        "qwen2",
        {
            "use_sliding_window": True,
            "sliding_window": 9,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "qwen25_tied": (
        "qwen2",
        {"tie_word_embeddings": True, "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0}},
    ),
    "qwen3": ("qwen3", {"head_dim": 16, "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0}}),
    "qwen3_tied": ("qwen3", {"head_dim": 8, "tie_word_embeddings": True}),
}
"""Case -> (model_type, what its config differs in from `SMALL`)."""


def build(case: str, attention: str = "eager") -> transformers.PreTrainedModel:
    """The random model of a case: every tensor is drawn, biases and norm scales too, so that none can be forgotten."""
    model_type, changes = CASES[case]
    config = transformers.AutoConfig.for_model(model_type, **{**SMALL, **changes})
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=torch.float32)
    generator = torch.Generator().manual_seed(list(CASES).index(case))
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            drawn = torch.randn(parameter.shape, generator=generator)
            scale = 1.0 if "embed" in name else 0.2
            parameter.copy_(1 + 0.3 * drawn if "norm" in name else scale * drawn)
    return model.eval()


def tokens_of(case: str) -> np.ndarray:
    """int32 [1, T]."""
    return np.random.default_rng(list(CASES).index(case)).integers(0, SMALL["vocab_size"], (1, LENGTH), np.int32)


def logits_of(model: transformers.PreTrainedModel, tokens: np.ndarray) -> np.ndarray:
    """float32 [1, T, V]."""
    with torch.no_grad():
        return model(torch.from_numpy(tokens).long()).logits.float().numpy()


def main() -> None:
    for case in CASES:
        directory = GOLDEN / case
        shutil.rmtree(directory, ignore_errors=True)
        model = build(case)
        model.save_pretrained(directory)
        tokens = tokens_of(case)
        logits = logits_of(model, tokens)
        np.savez(directory / "logits.npz", tokens=tokens, logits=logits)
        print(f"{case:16} largest logit {np.abs(logits).max():.2f}")


if __name__ == "__main__":
    main()
