"""Supervised fine-tuning in JAX: demonstrations in, an assistant out.

import sft_jax as sft

model = sft.load("runs/mine")                 # a directory, .gguf file, workdir or hf://org/name
run = sft.Run("configs/quickstart.py", **{"optimizer.learning_rate": 1e-4})
"""

import importlib
from typing import TYPE_CHECKING, Any

from sft_jax.errors import BadInput, NonFinite, Preempted

if TYPE_CHECKING:
    from sft_jax.api.model import Completion, Model, load
    from sft_jax.api.run import Run
    from sft_jax.config import Mesh, RunConfig, Sharding

__version__ = "0.1.0"

__all__ = [
    "BadInput",
    "Completion",
    "Mesh",
    "Model",
    "NonFinite",
    "Preempted",
    "Run",
    "RunConfig",
    "Sharding",
    "__version__",
    "load",
]

_WHERE = {
    "Completion": "sft_jax.api.model",
    "Model": "sft_jax.api.model",
    "load": "sft_jax.api.model",
    "Run": "sft_jax.api.run",
    "Mesh": "sft_jax.config",
    "RunConfig": "sft_jax.config",
    "Sharding": "sft_jax.config",
}
"""Imported when they are first asked for: JAX alone takes a second."""


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(importlib.import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'sft_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
