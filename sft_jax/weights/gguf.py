"""GGUF files: metadata, and tensors dequantised one at a time, under the names of Hugging Face checkpoints."""

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import gguf
import numpy as np

from sft_jax.errors import BadInput
from sft_jax.model.families import config_from_gguf
from sft_jax.storage.gguf_header import Header, read_header

NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
BLOCK_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k": "self_attn.k_proj",
    "attn_k_norm": "self_attn.k_norm",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}

ROPE_FACTORS = "rope_freqs.weight"


class Stored(NamedTuple):
    """A tensor as stored in the file."""

    kind: gguf.GGMLQuantizationType
    data: np.ndarray
    """uint8 [..., bytes per row], memory-mapped. A row is a sequence of blocks (elements if not quantised)."""


@dataclass(frozen=True)
class Gguf:
    """The tensors of a GGUF file."""

    tensors: dict[str, Stored]
    """By Hugging Face tensor name."""
    shapes: dict[str, tuple[int, ...]]
    """Hugging Face tensor name -> shape."""
    interleaved: dict[str, int]
    """Hugging Face tensor name -> head_dim, for tensors whose rows llama.cpp permuted."""

    def read(self, name: str, slices: Sequence[slice] | None = None) -> np.ndarray:
        """The tensor or a slice of it, dequantised to float32; reads only the rows and blocks it needs.

        llama.cpp stores the rows of a Llama head as (pair, half), Hugging Face as (half, pair). This undoes the
        permutation (`convert_hf_to_gguf.py`, LlamaModel.permute).
        """
        rows, *others = slices if slices is not None else [slice(0, size) for size in self.shapes[name]]
        head = self.interleaved.get(name, 1)
        whole_heads = slice(rows.start // head * head, -(-rows.stop // head) * head)
        part = _dequantise(self.tensors[name], (whole_heads, *others))
        if head > 1:
            halves_last = part.reshape(-1, head // 2, 2, *part.shape[1:])
            part = halves_last.swapaxes(1, 2).reshape(part.shape)
        return part[rows.start - whole_heads.start : rows.stop - whole_heads.start]


def _dequantise(tensor: Stored, slices: Sequence[slice]) -> np.ndarray:
    """Dequantise a slice of a tensor to float32, reading only the blocks that contain it."""
    *outer, last = slices
    block, size = gguf.GGML_QUANT_SIZES[tensor.kind]
    first, end = last.start // block, -(-last.stop // block)
    stored = np.ascontiguousarray(tensor.data[*outer, first * size : end * size])
    return gguf.quants.dequantize(stored, tensor.kind)[..., last.start - first * block : last.stop - first * block]


def open_gguf(path: Path) -> tuple[Gguf, dict, dict]:
    """(tensors, config.json, generation_config.json) of a GGUF file, the configs in Hugging Face's format.

    Raises:
      BadInput: not a GGUF file, a split file, an unsupported architecture or RoPE scaling, or a quantisation that the
        gguf package cannot dequantise.
    """
    header = read_header(path)
    metadata, shapes = header.metadata, {name: tensor.shape for name, tensor in header.tensors.items()}
    parts = metadata.get("split.count", 0)
    if parts > 1:
        raise BadInput(f"{path}: part 1 of {parts}; join them with `llama-gguf-split --merge {path.name} whole.gguf`")
    stored = _map_tensors(path, header)
    factors = stored.pop(ROPE_FACTORS, None)
    divisors = None if factors is None else _dequantise(factors, [slice(0, size) for size in shapes[ROPE_FACTORS]])
    config = config_from_gguf(metadata, shapes, divisors, str(path))
    names = {name: hugging_face_name(name) for name in stored}
    permuted = config["model_type"] == "llama"
    interleaved = {
        names[name]: config["head_dim"]
        for name in stored
        if permuted and name.startswith("blk.") and name.split(".")[2] in ("attn_q", "attn_k")
    }
    tensors = Gguf(
        {names[name]: tensor for name, tensor in stored.items()},
        {names[name]: shapes[name] for name in stored},
        interleaved,
    )
    return tensors, config, _generation_config(metadata)


def _map_tensors(path: Path, header: Header) -> dict[str, Stored]:
    """GGUF tensor name -> the tensor, memory-mapped."""
    data = np.memmap(path, np.uint8, "r")
    kinds = _dequantisable_kinds()
    unknown = sorted({tensor.kind for tensor in header.tensors.values()} - kinds.keys())
    if unknown:
        raise BadInput(
            f"{path}: cannot dequantise {', '.join(map(_name_of, unknown))}. "
            f"Supported: {', '.join(sorted(kind.name for kind in kinds.values()))}."
        )
    stored = {}
    for name, tensor in header.tensors.items():
        block, size = gguf.GGML_QUANT_SIZES[kinds[tensor.kind]]
        shape = (*tensor.shape[:-1], tensor.shape[-1] // block * size)
        end = tensor.start + math.prod(shape)
        if tensor.shape[-1] % block or end > len(data):
            raise BadInput(
                f"{path}: not a readable GGUF file (truncated?): {name} {list(tensor.shape)}, in blocks of {block}, "
                f"would end at byte {end:,} of {len(data):,}"
            )
        stored[name] = Stored(kinds[tensor.kind], data[tensor.start : end].reshape(shape))
    return stored


@cache
def _dequantisable_kinds() -> dict[int, gguf.GGMLQuantizationType]:
    """Quantisation types by ggml's number. The gguf package has no public list of those it can dequantise, so we try
    each on one block."""
    found = {}
    for kind in gguf.GGMLQuantizationType:
        _, size = gguf.GGML_QUANT_SIZES[kind]
        with contextlib.suppress(NotImplementedError):
            gguf.quants.dequantize(np.zeros((1, size), np.uint8), kind)
            found[kind.value] = kind
    return found


def _name_of(kind: int) -> str:
    known = {one.value: one.name for one in gguf.GGMLQuantizationType}
    return known.get(kind, f"number {kind}")


def hugging_face_name(name: str) -> str:
    """`blk.3.attn_q.weight` -> `model.layers.3.self_attn.q_proj.weight`; unknown names are returned unchanged."""
    stem, _, kind = name.rpartition(".")
    if stem in NAMES:
        return f"{NAMES[stem]}.{kind}"
    block, _, rest = stem.removeprefix("blk.").partition(".")
    if stem.startswith("blk.") and rest in BLOCK_NAMES:
        return f"model.layers.{block}.{BLOCK_NAMES[rest]}.{kind}"
    return name


def _generation_config(metadata: dict) -> dict:
    """Token ids under their generation_config.json names; llama.cpp may have several that end a turn."""
    ends = [metadata.get(f"tokenizer.ggml.{kind}_token_id") for kind in ("eos", "eot", "eom")]
    ends = list(dict.fromkeys(token for token in ends if token is not None))
    config = {
        "bos_token_id": metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
        "pad_token_id": metadata.get("tokenizer.ggml.padding_token_id"),
    }
    return {key: value for key, value in config.items() if value is not None}
