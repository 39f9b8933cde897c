"""Open a pretrained model and stream its tensors directly into their shards."""

import functools
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import NamedSharding

from sft_jax.errors import BadInput, hub_hint
from sft_jax.model.architecture import Architecture
from sft_jax.model.decoder import leaves
from sft_jax.model.families import architecture_of, family_of
from sft_jax.model.leaves import Leaf, part_name
from sft_jax.weights.gguf import open_gguf
from sft_jax.weights.names import Sizes, Source, is_ignored, sizes_of, sources_of, their_shape, their_slices, to_ours
from sft_jax.weights.safetensors import open_safetensors

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


class Tensors(Protocol):
    """The interface of a file format: `safetensors.Safetensors` and `gguf.Gguf`."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Hugging Face tensor name -> shape."""
        ...

    def read(self, name: str, slices: Sequence[slice] | None = None) -> np.ndarray:
        """The tensor or a slice of it, as a float array."""
        ...


@dataclass(frozen=True)
class ModelFiles:
    """A pretrained model on disk: architecture, configs, and tensors that are read on demand."""

    architecture: Architecture
    config: dict[str, Any]
    """The content of config.json (for a GGUF file, derived from its metadata)."""
    generation_config: dict[str, Any]
    """The content of generation_config.json; if missing, the token ids of config.json, as in transformers."""
    origin: str
    """The path, for error messages."""
    tensors: Tensors

    @property
    def model_type(self) -> str:
        return family_of(self.config, self.origin)

    def read(self, name: str, slices: Sequence[slice] | None = None) -> np.ndarray:
        """A tensor by its Hugging Face name, whole or sliced, in the dtype of the file (float32 from GGUF)."""
        return self.tensors.read(name, slices)


SMOLLM2 = ".cache/smollm2/"
"""Where the Makefile puts the model of configs/quickstart.py."""


def open_model(path: str) -> ModelFiles:
    """Open a Hugging Face directory, a `.gguf` file or `hf://org/name` without reading its weights.

    As in transformers 5, a tied config is untied (with a warning) if the checkpoint's lm_head.weight differs from the
    embedding, and if the checkpoint has only lm_head.weight, it serves as both.

    Raises:
      BadInput: no such path, not a model, an unsupported model, or the hub cannot be reached.
    """
    if path.startswith("hf://"):
        return _open_directory(_download(path))
    location = Path(path)
    if location.is_dir():
        return _open_directory(location)
    if not location.is_file():
        raise BadInput(
            f"{path}: no such file or directory. A model is a Hugging Face directory, a .gguf file or hf://org/name."
            f"{_how_to_get(path)}"
        )
    if location.suffix == ".py":
        raise BadInput(f"{path}: this is a config, not a model. MODEL is the workdir of its run, such as runs/mine")
    if location.suffix != ".gguf":
        raise BadInput(f"{path}: not a .gguf file. A model is a Hugging Face directory, a .gguf file or hf://org/name.")
    tensors, config, generation_config = open_gguf(location)
    return ModelFiles(architecture_of(config, path), config, generation_config, path, tensors)


def _how_to_get(path: str) -> str:
    """Where a model comes from that is not on this machine."""
    if SMOLLM2 in path:
        return " This one comes with `make model`."
    return hub_hint(path)


def _open_directory(directory: Path) -> ModelFiles:
    origin = str(directory)
    if not (directory / "config.json").is_file():
        ggufs = sorted(path.name for path in directory.glob("*.gguf"))
        hint = f"Pass the file {directory / ggufs[0]} itself." if ggufs else "A Hugging Face directory has one."
        raise BadInput(f"{directory}: no config.json. {hint}")
    config = read_json(directory / "config.json")
    generation = directory / "generation_config.json"
    architecture = architecture_of(config, origin)
    tensors = open_safetensors(directory)
    if architecture.tied and not _is_tied(tensors):
        logging.getLogger(__name__).warning(
            "%s: config.json ties the head to the embedding, but %s differs from %s; they are loaded untied, as in "
            "transformers. Set tie_word_embeddings to false to silence this warning.",
            origin,
            HEAD,
            EMBEDDING,
        )
        config = {**config, "tie_word_embeddings": False}
        architecture = replace(architecture, tied=False)
    if generation.is_file():
        return ModelFiles(architecture, config, read_json(generation), origin, tensors)
    ids = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if config.get(key) is not None}
    return ModelFiles(architecture, config, ids, origin, tensors)


def _is_tied(tensors: Tensors) -> bool:
    """False if the checkpoint has both embedding and head with different values; compares in blocks of rows."""
    shapes = tensors.shapes
    if EMBEDDING not in shapes or HEAD not in shapes:
        return True
    if shapes[EMBEDDING] != shapes[HEAD]:
        return False
    rows, width = shapes[EMBEDDING]
    step = max(1, 2**24 // width)
    blocks = [(slice(start, min(start + step, rows)), slice(0, width)) for start in range(0, rows, step)]
    return all(np.array_equal(tensors.read(EMBEDDING, block), tensors.read(HEAD, block)) for block in blocks)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file of a model.

    Raises:
      BadInput: no such file, or not a JSON object; names the line.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BadInput(f"{path}: no such file. A Hugging Face directory has a config.json.") from error
    except json.JSONDecodeError as error:
        raise BadInput(f"{path}:{error.lineno}:{error.colno}: not valid JSON: {error.msg}") from error
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: not valid UTF-8: {error.reason} at byte {error.start}") from error
    if not isinstance(content, dict):
        raise BadInput(f"{path}: contains a {type(content).__name__}, expected an object")
    return content


def _download(path: str) -> Path:
    name = path.removeprefix("hf://")
    if name.count("/") != 1:
        raise BadInput(f"{path}: expected hf://org/name")
    # Imported late: it is slow, and most models are on disk.
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    wanted = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=wanted))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        first_line = str(error).strip().split("\n")[0]
        raise BadInput(
            f"{path}: could not be downloaded: {first_line}. Without network access to the hub, copy the model "
            f"directory to this machine and pass its path."
        ) from error


def load_parameters(
    files: ModelFiles,
    architecture: Architecture,
    shardings: Mapping[str, NamedSharding],
    dtype: str = "float32",
    seed: int = 0,
) -> dict[str, jax.Array]:
    """Load the pretrained parameters directly into their shardings; no device holds more than its shards.

    Fills one shard at a time in host memory, layer by layer, from the tensor slices it needs, and copies it to its
    devices. A process reads only the shards of its own devices.

    Args:
      files: the model.
      architecture: `files.architecture`, as laid out; padding rows of the vocabulary are zero.
      shardings: name -> sharding of the arrays to load: all of `abstract_parameters(architecture)`, or some.
      dtype: dtype of float arrays; float32 for master weights.
      seed: seed for arrays that are not in the pretrained weights, such as a new adapter's.

    Raises:
      BadInput: tensors are missing, unexpected or of the wrong shape; names every one.
    """
    sizes = sizes_of(architecture)
    sources = sources_of(architecture, files.model_type)
    alias = {EMBEDDING: HEAD} if architecture.tied and EMBEDDING not in files.tensors.shapes else {}
    _check(files, sources, sizes, alias)
    parameters = {}
    for number, (name, leaf) in enumerate(leaves(architecture).items()):
        for suffix, part in leaf.parts.items():
            own = part_name(name, suffix)
            if own not in shardings:
                continue
            if suffix not in leaf.pretrained:
                begin = functools.partial(leaf.initial, suffix)
                key = jax.random.fold_in(jax.random.key(seed), number)
                parameters[own] = jax.jit(begin, out_shardings=shardings[own])(key)
                continue
            arrays = []
            for index, devices in _shards(shardings[own], part.shape):
                # Allocate a new array each time: on CPU, device_put may alias an aligned one instead of copying it.
                filled = _fill_part(files, leaf, suffix, sources[name], sizes, index, np.dtype(dtype), alias)
                arrays += jax.block_until_ready([jax.device_put(filled, device) for device in devices])
            parameters[own] = jax.make_array_from_single_device_arrays(part.shape, shardings[own], arrays)
    return parameters


def _shards(sharding: NamedSharding, shape: tuple[int, ...]) -> Iterator[tuple[tuple[slice, ...], list[Any]]]:
    """Each distinct shard of this process, and the devices that hold it."""
    devices: dict[tuple[tuple[int, int], ...], list[Any]] = {}
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        assert index is not None
        bounds = [part.indices(size)[:2] for part, size in zip(index, shape, strict=True)]
        devices.setdefault(tuple(bounds), []).append(device)
    for bounds, holders in devices.items():
        yield tuple(slice(*bound) for bound in bounds), holders


def _fill_part(
    files: ModelFiles,
    leaf: Leaf,
    suffix: str,
    source: Source,
    sizes: Sizes,
    index: Sequence[slice],
    dtype: np.dtype,
    alias: Mapping[str, str],
) -> np.ndarray:
    """The slice `index` of one of a leaf's arrays, in host memory."""
    whole = leaf.needed_whole
    if not whole:
        return _fill(files, source, sizes, index, dtype, alias)
    shape = leaf.array.shape
    wider = [slice(0, shape[i]) if i in whole else part for i, part in enumerate(index)]
    stored = leaf.store(_fill(files, source, sizes, wider, np.dtype(np.float32), alias))[suffix]
    cut = tuple(part if i in whole and stored.shape[i] > 1 else slice(None) for i, part in enumerate(index))
    return np.ascontiguousarray(stored[cut])


def _fill(
    files: ModelFiles, source: Source, sizes: Sizes, index: Sequence[slice], dtype: np.dtype, alias: Mapping[str, str]
) -> np.ndarray:
    """The slice `index` of a kernel, in host memory."""
    out = np.zeros([part.stop - part.start for part in index], dtype)
    entry, lead, own = source.entry, index[: len(source.lead)], index[len(source.lead) :]
    # Padding rows of the vocabulary are not in the file and stay zero.
    held = [slice(min(p.start, sizes[c]), min(p.stop, sizes[c])) for c, p in zip(entry.letters, own, strict=True)]
    target = tuple(slice(0, part.stop - part.start) for part in held)
    for at in np.ndindex(*(part.stop - part.start for part in lead)):
        name = source.name(tuple(part.start + i for part, i in zip(lead, at, strict=True)))
        part = files.read(alias.get(name, name), their_slices(entry, sizes, held))
        out[at][target] = to_ours(entry, sizes, held, part)
    return out


def _check(files: ModelFiles, sources: Mapping[str, Source], sizes: Sizes, alias: Mapping[str, str]) -> None:
    """Check that every needed tensor exists in the right shape, and that none is left over."""
    shapes = files.tensors.shapes
    wanted = {
        alias.get(name, name): their_shape(source.entry, sizes) for source in sources.values() for name in source.names
    }
    tied = HEAD not in wanted and "head" not in sources
    extra = [name for name in shapes if name not in wanted and not is_ignored(name) and not (tied and name == HEAD)]
    missing = [name for name in wanted if name not in shapes]
    wrong = [
        f"{name} {list(shapes[name])}, expected {list(shape)}"
        for name, shape in wanted.items()
        if name in shapes and shapes[name] != shape
    ]
    problems = [
        f"{len(names)} {kind}: {', '.join(names)}"
        for kind, names in (("missing", missing), ("not in the model", extra), ("of the wrong shape", wrong))
        if names
    ]
    if problems:
        raise BadInput(f"{files.origin}: tensors do not fit config.json\n  " + "\n  ".join(problems))
