"""Streaming reader of safetensors: one file, or several with `model.safetensors.index.json`."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes  # noqa: F401  (gives numpy the bfloat16 that safetensors returns)
import numpy as np
from safetensors import SafetensorError, safe_open

from sft_jax.errors import BadInput

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"

DTYPES = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True)
class Safetensors:
    """The tensors of a checkpoint directory. Files are opened for each read, so no mapping outlives it."""

    files: dict[str, Path]
    """Tensor name -> the file that holds it."""
    shapes: dict[str, tuple[int, ...]]
    """Tensor name -> shape."""

    def read(self, name: str, slices: Sequence[slice] | None = None) -> np.ndarray:
        """The tensor or a slice of it (one slice per dimension); reads only that part.

        Returns float64, float32, float16 or bfloat16, as stored.
        """
        with safe_open(self.files[name], framework="numpy") as file:
            return file.get_slice(name)[tuple(slices) if slices is not None else ...]


def open_safetensors(directory: Path) -> Safetensors:
    """Open the checkpoint of a Hugging Face directory; reads only the files' headers.

    Raises:
      BadInput: no safetensors, an invalid index, missing files (names all of them), a corrupted file, tensors in the
        index but not in the files, or a dtype other than a float of at least 16 bits.
    """
    files, promised = _files(directory)
    missing = [path.name for path in files if not path.is_file()]
    if missing:
        raise BadInput(f"{directory}: {INDEX} names files that are missing: {', '.join(missing)}. Copy them there.")
    where: dict[str, Path] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for path in files:
        try:
            with safe_open(path, framework="numpy") as file:
                for name in file.keys():  # noqa: SIM118  (safe_open is no mapping)
                    part = file.get_slice(name)
                    if part.get_dtype() not in DTYPES:
                        raise BadInput(f"{path}: tensor {name} is {part.get_dtype()}; supported: {', '.join(DTYPES)}")
                    where[name], shapes[name] = path, tuple(part.get_shape())
        except SafetensorError as error:
            raise BadInput(f"{path}: not a readable safetensors file (truncated?): {error}") from error
    lost = sorted(set(promised) - set(where))
    if lost:
        raise BadInput(f"{directory}: {INDEX} names tensors that no file contains: {', '.join(lost)}")
    return Safetensors(where, shapes)


def _files(directory: Path) -> tuple[list[Path], list[str]]:
    """(files to open, tensor names in the index)."""
    index = directory / INDEX
    if index.is_file():
        try:
            weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        except (ValueError, KeyError, TypeError) as error:
            raise BadInput(f"{index}: not a safetensors index: {type(error).__name__}: {error}") from error
        if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
            raise BadInput(f"{index}: weight_map is not an object of tensor name -> file name")
        return [directory / name for name in sorted(set(weight_map.values()))], list(weight_map)
    if (directory / SINGLE).is_file():
        return [directory / SINGLE], []
    others = sorted(path.name for path in directory.iterdir() if path.suffix in (".bin", ".pt", ".pth"))
    found = f"found {', '.join(others)}: save it again as safetensors" if others else "found no weights"
    raise BadInput(f"{directory}: neither {SINGLE} nor {INDEX}; {found}")
