"""GGUF files: metadata, and tensors dequantised one at a time, under the names of Hugging Face checkpoints."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from sft_jax.errors import BadInput
from sft_jax.model.families import config_from_gguf

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

LONG = 1000
"""Arrays of more elements are a vocabulary, which the tokenizer's reader wants, not this one."""

ROPE_FACTORS = "rope_freqs.weight"


class QuickReader(gguf.GGUFReader):
    """A GGUFReader that steps over long arrays: with a vocabulary of 49,152 it opens in 0.03 s instead of 2.5 s."""

    def _get_field_parts(self, orig_offs: int, raw_type: int):
        if raw_type != gguf.GGUFValueType.ARRAY or self.byte_order == "S":
            return super()._get_field_parts(orig_offs, raw_type)
        kind, count = struct.unpack_from("<IQ", self.data.data, orig_offs)
        if count <= LONG:
            return super()._get_field_parts(orig_offs, raw_type)
        end = orig_offs + 12
        if kind != gguf.GGUFValueType.STRING:
            return 12 + count * np.dtype(self.gguf_scalar_to_np[gguf.GGUFValueType(kind)]).itemsize, [], [], []
        for _ in range(count):
            end += 8 + struct.unpack_from("<Q", self.data.data, end)[0]
        return end - orig_offs, [], [], []


@dataclass(frozen=True)
class Gguf:
    """The tensors of a GGUF file."""

    tensors: dict[str, Any]
    """Hugging Face tensor name -> `gguf.ReaderTensor` (memory-mapped)."""
    shapes: dict[str, tuple[int, ...]]
    """Hugging Face tensor name -> shape."""
    interleaved: dict[str, int]
    """Hugging Face tensor name -> head_dim, for tensors whose rows llama.cpp permuted."""

    def read(self, name: str, slices: Sequence[slice] | None = None) -> np.ndarray:
        """The tensor or a part of it, dequantised to float32; only the rows and blocks asked for are read.

        llama.cpp stores the rows of a Llama head as (pair, half), Hugging Face as (half, pair): undone here
        (`convert_hf_to_gguf.py`, LlamaModel.permute).
        """
        rows, *columns = slices if slices is not None else [slice(0, size) for size in self.shapes[name]]
        head = self.interleaved.get(name, 1)
        start, stop = rows.start // head * head, -(-rows.stop // head) * head
        tensor = self.tensors[name]
        stored = tensor.data[start:stop]
        if columns and stored.dtype == np.uint8:
            # A row is a sequence of blocks: `block` elements in `size` bytes.
            block, size = gguf.GGML_QUANT_SIZES[tensor.tensor_type]
            first = columns[0].start // block
            stored = stored[:, first * size : -(-columns[0].stop // block) * size]
            columns = [slice(columns[0].start - first * block, columns[0].stop - first * block)]
        part = gguf.quants.dequantize(np.ascontiguousarray(stored), tensor.tensor_type)
        if head > 1:
            halves_last = part.reshape(-1, head // 2, 2, *part.shape[1:])
            part = halves_last.swapaxes(1, 2).reshape(part.shape)
        return part[(slice(rows.start - start, rows.stop - start), *columns)]


def open_gguf(path: Path) -> tuple[Gguf, dict, dict]:
    """The tensors, a Hugging Face style config.json and a generation_config.json of a GGUF file.

    Raises:
      BadInput: not a GGUF file, one of several parts, an unsupported architecture or RoPE scaling, or a quantisation
        that the gguf package cannot undo.
    """
    try:
        reader = QuickReader(path)
    except (ValueError, IndexError, KeyError, UnicodeDecodeError, struct.error) as error:
        raise BadInput(f"{path}: not a readable GGUF file (cut short?): {error}") from error
    metadata = {key: field.contents() for key, field in reader.fields.items()}
    parts = metadata.get("split.count", 0)
    if parts > 1:
        raise BadInput(f"{path}: part 1 of {parts}; join them with `llama-gguf-split --merge {path.name} whole.gguf`")
    stored = {tensor.name: tensor for tensor in reader.tensors}
    shapes = {name: tuple(int(size) for size in reversed(tensor.shape)) for name, tensor in stored.items()}
    factors = stored.pop(ROPE_FACTORS, None)
    config = config_from_gguf(metadata, shapes, None if factors is None else np.asarray(factors.data), str(path))
    _refuse_unknown_quantisation(stored, path)
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


def hugging_face_name(name: str) -> str:
    """`blk.3.attn_q.weight` -> `model.layers.3.self_attn.q_proj.weight`; names it does not know stay as they are."""
    stem, _, kind = name.rpartition(".")
    if stem in NAMES:
        return f"{NAMES[stem]}.{kind}"
    block, _, rest = stem.removeprefix("blk.").partition(".")
    if stem.startswith("blk.") and rest in BLOCK_NAMES:
        return f"model.layers.{block}.{BLOCK_NAMES[rest]}.{kind}"
    return name


def _refuse_unknown_quantisation(stored: dict[str, Any], path: Path) -> None:
    types = {tensor.tensor_type for tensor in stored.values()}
    known = {gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16, *gguf.quants._type_traits}
    unknown = sorted(kind.name for kind in types - known)
    if unknown:
        raise BadInput(
            f"{path}: cannot undo the quantisation {', '.join(unknown)}. "
            f"Supported: {', '.join(sorted(kind.name for kind in known))}."
        )


def _generation_config(metadata: dict) -> dict:
    """Token ids under their names in generation_config.json; llama.cpp may hold several that end a turn."""
    ends = [metadata.get(f"tokenizer.ggml.{kind}_token_id") for kind in ("eos", "eot", "eom")]
    ends = list(dict.fromkeys(token for token in ends if token is not None))
    config = {
        "bos_token_id": metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
        "pad_token_id": metadata.get("tokenizer.ggml.padding_token_id"),
    }
    return {key: value for key, value in config.items() if value is not None}
