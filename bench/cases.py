"""What is measured: every case of every section, for a GPU and in the tiny form that any CPU runs in a minute."""

from dataclasses import dataclass
from typing import Any

MODELS = "configs/architectures"

TINY_CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "hidden_act": "silu",
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10_000.0,
    "tie_word_embeddings": True,
}
"""The config.json of the tiny form's model; a larger one for parity on a GPU."""


@dataclass(frozen=True)
class AttentionCase:
    """One implementation at one shape."""

    implementation: str
    """As in `model.attention`; `anchor` is `jax.nn.dot_product_attention`."""
    dtype: str
    packed: bool
    length: int = 512
    rows: int = 2
    heads: int = 16
    kv_heads: int = 4
    head_dim: int = 64
    window: int | None = None
    softcap: float | None = None
    timed: bool = False
    """Timed, not compared with the reference."""


@dataclass(frozen=True)
class ParityCase:
    """A small model and batch that both devices train."""

    config: dict[str, Any]
    """The model's config.json."""
    rows: int
    length: int


@dataclass(frozen=True)
class StepCase:
    """One training step: ours, or torch's over the same rows."""

    model: str
    """A directory with a config.json."""
    rows: int
    length: int = 2048
    packed: bool = True
    remat: str = "none"
    """Ours alone; torch keeps everything."""
    steps: int = 8
    """Timed, after two that are not."""


@dataclass(frozen=True)
class Cases:
    """The work of every section, the most telling first: what time does not allow is skipped from the end."""

    attention: tuple[AttentionCase, ...]
    """The anchor of a shape before what is timed beside it."""
    parity: ParityCase
    pairs: tuple[StepCase, ...]
    """Ours and torch's, one after the other."""
    alone: tuple[StepCase, ...]
    """Ours only."""


def _plain(**shape: Any) -> list[AttentionCase]:
    """Both implementations, whole and packed, in both dtypes."""
    kinds = [(dtype, packed) for dtype in ("bfloat16", "float32") for packed in (True, False)]
    return [AttentionCase(name, *kind, **shape) for kind in kinds for name in ("triton", "blockwise")]


def _limited(**shape: Any) -> list[AttentionCase]:
    """Windows and soft-caps, which the triton kernel does not know."""
    limits: tuple[dict[str, Any], ...] = ({"window": 100}, {"softcap": 20.0}, {"window": 100, "softcap": 20.0})
    dtypes = ("bfloat16", "float32")
    return [AttentionCase("blockwise", dtype, True, **shape, **limit) for dtype in dtypes for limit in limits]


def _timed(*names: str, **shape: Any) -> list[AttentionCase]:
    """Whole and packed rows; the anchor knows no documents."""
    kinds = [(name, packed) for packed in (False, True) for name in names if name != "anchor" or not packed]
    return [AttentionCase(name, "bfloat16", packed, **shape, timed=True) for name, packed in kinds]


def full() -> Cases:
    """For one GPU with 80 GB."""
    wide = {"rows": 4, "length": 2048, "heads": 16, "kv_heads": 8, "head_dim": 128}
    narrow = {"rows": 4, "length": 2048, "heads": 32, "kv_heads": 8, "head_dim": 64}
    smollm, qwen, llama = (f"{MODELS}/{name}" for name in ("smollm2-135m", "qwen3-0.6b", "llama-3.2-1b"))
    return Cases(
        attention=(
            *_plain(),
            AttentionCase("triton", "bfloat16", True, length=2048, head_dim=128),
            AttentionCase("triton", "float32", True, length=1000, head_dim=128),
            AttentionCase("triton", "bfloat16", True, head_dim=256),
            *_timed("anchor", "triton", **wide),
            *_timed("anchor", "triton", **narrow),
            *_limited(),
            *_timed("blockwise", **wide),
            AttentionCase("blockwise", "bfloat16", True, length=1000, head_dim=128),
        ),
        parity=ParityCase({**TINY_CONFIG, "vocab_size": 1024, "hidden_size": 256, "head_dim": 64}, rows=4, length=512),
        pairs=(
            StepCase(smollm, rows=16),
            StepCase(qwen, rows=8),
            StepCase(llama, rows=8),
            StepCase(qwen, rows=8, packed=False),
        ),
        alone=(
            StepCase(llama, rows=16, remat="attention"),
            StepCase(qwen, rows=16, remat="attention"),
            StepCase(smollm, rows=32),
            StepCase(smollm, rows=32, remat="attention"),
            StepCase(qwen, rows=16),
        ),
    )


def tiny(model: str) -> Cases:
    """The same ways through the code, at sizes that a CPU does at once.

    Args:
      model: a directory with the config.json of a tiny model.
    """
    shape = {"rows": 1, "length": 128, "heads": 2, "kv_heads": 1, "head_dim": 16}
    pair = StepCase(model, rows=2, length=64, steps=2)
    return Cases(
        attention=(*_plain(**shape)[:2], _limited(**shape)[-1], *_timed("anchor", "triton", "blockwise", **shape)[:3]),
        parity=ParityCase(TINY_CONFIG, rows=2, length=64),
        pairs=(pair,),
        alone=(StepCase(model, rows=2, length=64, remat="attention", steps=2),),
    )
