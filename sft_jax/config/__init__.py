"""What a run is: its sections, how they are loaded and saved, and what is checked of them."""

from sft_jax.config.kinds import ADAPTERS, LOSSES, OPTIMIZERS, SINKS
from sft_jax.config.loading import from_json, identity_differences, load_config, to_json, with_overrides
from sft_jax.config.run import (
    Adapter,
    Data,
    Distributed,
    Format,
    Loss,
    Mesh,
    Model,
    Optimizer,
    RunConfig,
    Sharding,
    Train,
    leaf_fields,
)
from sft_jax.config.validation import layout_problems, url_problem, validate

__all__ = [
    "ADAPTERS",
    "LOSSES",
    "OPTIMIZERS",
    "SINKS",
    "Adapter",
    "Data",
    "Distributed",
    "Format",
    "Loss",
    "Mesh",
    "Model",
    "Optimizer",
    "RunConfig",
    "Sharding",
    "Train",
    "from_json",
    "identity_differences",
    "layout_problems",
    "leaf_fields",
    "load_config",
    "to_json",
    "url_problem",
    "validate",
    "with_overrides",
]
