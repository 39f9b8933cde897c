"""sft-jax export MODEL --out DIR"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from sft_jax.cli.arguments import check_writable, parse, require
from sft_jax.cli.options import ModelOptions, ModelPath, at_least, load_model, stages
from sft_jax.errors import EXIT_DONE


@dataclass(frozen=True)
class Export(ModelOptions):
    """Write a model as a Hugging Face directory that transformers, vLLM and others load."""

    model: ModelPath
    """A Hugging Face directory, a .gguf file, a run's workdir, or hf://org/name."""
    out: str = ""
    """Directory to create."""
    dtype: Literal["float32", "bfloat16"] = field(default="float32", kw_only=True)
    """Element type of the written tensors."""
    max_shard_bytes: int = 5 * 2**30
    """Size limit of one safetensors file."""


def export(arguments: Sequence[str]) -> int:
    """sft-jax export MODEL --out DIR"""
    options = parse(Export, arguments, "sft-jax export")
    require(options, "out", "sft-jax export")
    at_least(options, 1, "max_shard_bytes")
    check_writable(options.out, directory=True)
    model = load_model(options.model, options)
    with stages()(f"writing {options.out}"):
        model.export(options.out, dtype=options.dtype, max_shard_bytes=options.max_shard_bytes)
    print(options.out)
    return EXIT_DONE
