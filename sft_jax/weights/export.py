"""Export a Hugging Face directory that transformers loads: config, generation_config, tokenizer, safetensors."""

import contextlib
import functools
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from sft_jax.data.chat.encode import rendered
from sft_jax.errors import BadInput
from sft_jax.model.architecture import Architecture
from sft_jax.model.decoder import leaves
from sft_jax.model.families import FAMILIES, architecture_of, as_reward, family_of
from sft_jax.model.leaves import ArrayLeaf, Leaf, effective_kernel, part_name
from sft_jax.weights.names import Sizes, Source, sizes_of, sources_of, their_shape, to_theirs
from sft_jax.weights.safetensors import INDEX, SINGLE

SAFETENSORS_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}

PIECE_BYTES = 2**26
"""Size of the row blocks in which the embedding and the head are gathered."""


@dataclass(frozen=True)
class Tensor:
    """One tensor of the exported checkpoint: a layer (and expert) of one of our kernels."""

    name: str
    shape: tuple[int, ...]
    source: Source
    ours: str
    at: tuple[int, ...]
    """Its index in the leading dimensions of our kernel."""

    def bytes(self, dtype: np.dtype) -> int:
        return math.prod(self.shape) * dtype.itemsize


def export(
    parameters: Mapping[str, jax.Array],
    architecture: Architecture,
    hf_config: Mapping[str, Any],
    tokenizer: Any,
    out_dir: str | Path,
    dtype: str = "float32",
    max_shard_bytes: int = 5 * 2**30,
    generation_config: Mapping[str, Any] | None = None,
) -> None:
    """Write `parameters` as a Hugging Face directory, atomically.

    Sharded parameters are gathered one layer of one tensor at a time. Every process must call this; process 0 writes,
    and all return once the directory exists.

    Args:
      parameters: name -> array as in `model/decoder.py`. Int8 kernels are dequantised and adapters merged; padding rows
        beyond `architecture.vocab` are not written.
      architecture: architecture of the parameters.
      hf_config: the model's original config.json, or `families.config_of(architecture, model_type)`.
      tokenizer: a transformers tokenizer, saved with its chat template; None writes none.
      out_dir: must not exist, or be empty.
      dtype: dtype of the written tensors: float32, float16 or bfloat16.
      max_shard_bytes: above this size the tensors are split over several files with an index.
      generation_config: the model's original one; `stop_tokens` are added to its eos_token_id.

    Raises:
      BadInput: `out_dir` is not empty, `hf_config` describes another decoder, or the dtype is unknown.
    """
    out = Path(out_dir).resolve()
    if dtype not in SAFETENSORS_DTYPES:
        raise BadInput(f"cannot export dtype {dtype!r}. Supported: {', '.join(SAFETENSORS_DTYPES)}.")
    config, generation = _configs(architecture, hf_config, tokenizer, dtype, generation_config or {})
    _agree(_occupied(out) if _writes() else "")
    partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
    try:
        if _writes():
            partial.mkdir(parents=True)
            _write_json(partial / "config.json", config)
            _write_json(partial / "generation_config.json", generation)
            if tokenizer is not None:
                save_tokenizer(tokenizer, partial)
        _write_tensors(partial, parameters, architecture, family_of(config, str(out)), dtype, max_shard_bytes)
        if _writes():
            os.rename(partial, out)
    finally:
        if _writes():
            shutil.rmtree(partial, ignore_errors=True)
    _agree("")


def stop_tokens(tokenizer: Any, generation_config: Mapping[str, Any]) -> list[int]:
    """Ids that end a completion: the generation config's, the chat template's end of turn, the tokenizer's EOS.

    Raises:
      BadInput: ids that are not integers, or a chat template that fails.
    """
    given = generation_config.get("eos_token_id")
    stops = list(given) if isinstance(given, list) else [given]
    if not all(isinstance(token, int | None) for token in stops):
        raise BadInput(f"generation_config.json: eos_token_id is {given!r}, expected a token id or a list of them")
    if tokenizer is not None:
        stops += [_end_of_turn(tokenizer), tokenizer.eos_token_id]
    return list(dict.fromkeys(token for token in stops if token is not None))


def _end_of_turn(tokenizer: Any) -> int | None:
    """The special token that the chat template writes after an assistant message; None if there is none."""
    if not tokenizer.chat_template:
        return None
    mark = "3f1c9a"
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": mark}]
    after = rendered("the model's tokenizer", turns, tokenizer).rpartition(mark)[2].lstrip()
    ids = tokenizer(after, add_special_tokens=False)["input_ids"]
    first = tokenizer.added_tokens_decoder.get(ids[0]) if ids else None
    return ids[0] if first is not None and first.special else None


def save_tokenizer(tokenizer: Any, directory: str | Path) -> None:
    """Save a fast tokenizer so that every release of transformers loads an identical one, chat template included.

    transformers 5 writes the class TokenizersBackend, which transformers 4 does not know. And given a model's own
    class, e.g. GPT2Tokenizer, it rebuilds the pre-tokenizer and ignores the one in tokenizer.json (SmolLM2's digit
    splitting). PreTrainedTokenizerFast uses tokenizer.json unchanged in both.
    """
    tokenizer.save_pretrained(str(directory))
    path = Path(directory) / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    # transformers 4 would also return token_type_ids, which these decoders reject.
    config["model_input_names"] = ["input_ids", "attention_mask"]
    _write_json(path, config)


def _configs(
    a: Architecture, hf_config: Mapping[str, Any], tokenizer: Any, dtype: str, given: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """config.json and generation_config.json."""
    config = {key: value for key, value in hf_config.items() if key not in ("torch_dtype", "_name_or_path")}
    model_type = family_of(config, "the model's config")
    if a.reward:
        config = as_reward(config, model_type)
    else:
        config |= {"architectures": [FAMILIES[model_type].class_name], "model_type": model_type}
    config["dtype"] = dtype
    config |= {"vocab_size": a.vocab, "tie_word_embeddings": a.tied}
    described, expected = architecture_of(config, "the model's config"), a.plain
    if described != expected:
        differences = [f"layers {described.depth}, the parameters have {expected.depth}"] * (
            described.depth != expected.depth
        )
        differences += [
            f"{name} {getattr(described, name)!r}, the parameters have {value!r}"
            for name, value in vars(expected).items()
            if value != getattr(described, name) and (name != "layers" or described.depth == expected.depth)
        ]
        raise BadInput(f"the config to export describes another decoder: {'; '.join(differences)}")
    generation = {key: value for key, value in given.items() if key != "_from_model_config"}
    for name in ("bos_token_id", "pad_token_id"):
        known = generation.get(name, config.get(name))
        if known is None and tokenizer is not None:
            known = getattr(tokenizer, name)
        if known is not None:
            generation[name] = known
    stops = stop_tokens(tokenizer, {"eos_token_id": config.get("eos_token_id")} | generation)
    if stops:
        generation["eos_token_id"] = config["eos_token_id"] = stops if len(stops) > 1 else stops[0]
    return config, generation


def _writes() -> bool:
    return jax.process_index() == 0


def _occupied(out: Path) -> str:
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        return f"{out} exists and is not empty. Export to a new directory, or remove it first."
    return ""


def _agree(problem: str) -> None:
    """Raise process 0's problem on every process; also acts as a barrier."""
    if jax.process_count() > 1 and multihost_utils.broadcast_one_to_all(np.int32(bool(problem))):
        problem = problem or "process 0 could not export; see its error message"
    if problem:
        raise BadInput(problem)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _write_tensors(
    directory: Path, parameters: Mapping[str, jax.Array], a: Architecture, model_type: str, dtype: str, max_bytes: int
) -> None:
    kind, sizes = np.dtype(dtype), sizes_of(a)
    files = _split(_tensors(a, model_type, sizes), kind, max_bytes)
    names = [SINGLE] if len(files) == 1 else [_shard_name(i, len(files)) for i in range(len(files))]
    for name, tensors in zip(names, files, strict=True):
        _write_file(directory / name, tensors, parameters, leaves(a), sizes, dtype)
    if len(files) > 1 and _writes():
        weight_map = {t.name: name for name, tensors in zip(names, files, strict=True) for t in tensors}
        total = sum(t.bytes(kind) for tensors in files for t in tensors)
        _write_json(directory / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _shard_name(index: int, count: int) -> str:
    return f"model-{index + 1:05d}-of-{count:05d}.safetensors"


def _tensors(a: Architecture, model_type: str, sizes: Sizes) -> list[Tensor]:
    """Every tensor of the checkpoint, in layer order."""
    tensors = [
        Tensor(source.name(at), their_shape(source.entry, sizes), source, ours, at)
        for ours, source in sources_of(a, model_type).items()
        for at in np.ndindex(*source.lead)
    ]
    return sorted(tensors, key=lambda t: [(part.isdigit(), part.zfill(6)) for part in t.name.split(".")])


def _split(tensors: Sequence[Tensor], dtype: np.dtype, max_bytes: int) -> list[list[Tensor]]:
    """Split tensors into consecutive files of at most `max_bytes`, unless a single tensor is larger."""
    files: list[list[Tensor]] = [[]]
    room = max_bytes
    for tensor in tensors:
        if files[-1] and tensor.bytes(dtype) > room:
            files.append([])
            room = max_bytes
        files[-1].append(tensor)
        room -= tensor.bytes(dtype)
    return files


def _write_file(
    path: Path, tensors: Sequence[Tensor], parameters: Mapping[str, jax.Array], known: Mapping[str, Leaf], sizes: Sizes,
    dtype: str,
) -> None:  # fmt: skip
    """One safetensors file (8 bytes of header length, JSON header padded to 8 bytes, then the tensors), streamed."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        start, end = end, end + tensor.bytes(np.dtype(dtype))
        header[tensor.name] = {
            "dtype": SAFETENSORS_DTYPES[dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(path.open("wb")) if _writes() else None
        if file is not None:
            file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors:
            leaf = known[tensor.ours]
            arrays = {suffix: parameters[part_name(tensor.ours, suffix)] for suffix in leaf.parts}
            for piece in _pieces(leaf, arrays, tensor, sizes, dtype):
                if file is not None:
                    file.write(piece.reshape(-1).view(np.uint8).data)
        if file is not None and file.tell() != 8 + len(text) + end:
            raise RuntimeError(f"{path}: wrote {file.tell()} bytes, expected {8 + len(text) + end}")


def _pieces(
    leaf: Leaf, arrays: Mapping[str, jax.Array], tensor: Tensor, sizes: Sizes, dtype: str
) -> Iterator[np.ndarray]:
    """The tensor in the checkpoint's layout, on the host; large ones in blocks of rows."""
    entry, shape = tensor.source.entry, leaf.array.shape
    lead = len(tensor.at)
    if not lead and isinstance(leaf, ArrayLeaf) and entry.our_layout == entry.their_layout:
        rows = tensor.shape[0]
        step = max(1, PIECE_BYTES * rows // max(1, tensor.bytes(np.dtype(dtype))))
        for start in range(0, rows, step):
            yield _gather(leaf, arrays, (start,), (min(step, rows - start),), dtype)
    else:
        part = _gather(leaf, arrays, tensor.at, (1,) * lead, dtype)
        yield to_theirs(entry, sizes, part.reshape(shape[lead:]))


def _gather(
    leaf: Leaf, arrays: Mapping[str, jax.Array], start: tuple[int, ...], count: tuple[int, ...], dtype: str
) -> np.ndarray:
    """A block of a kernel's leading dimensions in host memory, whatever its sharding; every process must call it.

    If all shards belong to this process they are combined on the host, otherwise they are all-gathered first.
    """
    first = next(iter(arrays.values()))
    whole = None
    if isinstance(first.sharding, NamedSharding) and not first.is_fully_addressable:
        whole = NamedSharding(first.sharding.mesh, PartitionSpec())
    part = _slicer(leaf, whole, count, dtype)(dict(arrays), start)
    return np.asarray(part if whole is None else part.addressable_data(0))


@functools.lru_cache(maxsize=256)
def _slicer(leaf: Leaf, whole: NamedSharding | None, count: tuple[int, ...], dtype: str):
    def cut(x, start):
        rest = (0,) * (x.ndim - len(count))
        return jax.lax.dynamic_slice(x, (*start, *rest), (*count, *x.shape[len(count) :]))

    def block(arrays, start):
        parts = {suffix: cut(array, start) for suffix, array in arrays.items()}
        return effective_kernel(leaf.kernel(parts), leaf.array.equation).astype(dtype)

    return jax.jit(block, out_shardings=whole)
