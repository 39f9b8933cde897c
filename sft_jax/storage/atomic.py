"""Atomic file writes: a file is complete or absent, even if the process is killed."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO


def write_atomic(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Replace a file atomically: readers see the old content or the new, even if the process is killed.

    Args:
      write: called with the open binary file.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    with partial.open("wb") as file:
        write(file)
    os.replace(partial, path)


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically."""
    content = f"{json.dumps(value, indent=2, ensure_ascii=False)}\n".encode()
    write_atomic(path, lambda file: file.write(content))
