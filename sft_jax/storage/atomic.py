"""Files that are there whole or not at all, also when a kill comes in between."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO


def write_whole(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Whoever reads the file sees the old content or the new one, also when a kill comes in between.

    Args:
      write: called with the open binary file.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    with partial.open("wb") as file:
        write(file)
    os.replace(partial, path)


def write_json(path: Path, value: Any) -> None:
    """Indented JSON, whole or not at all."""
    content = f"{json.dumps(value, indent=2, ensure_ascii=False)}\n".encode()
    write_whole(path, lambda file: file.write(content))
