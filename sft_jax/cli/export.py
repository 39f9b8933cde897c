"""sft-jax export MODEL --out DIR"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from sft_jax.cli.arguments import check_writable, parse, require
from sft_jax.errors import EXIT_DONE
from sft_jax.using import Layout, ModelPath, at_least, is_first_process, loaded, send

if TYPE_CHECKING:
    from sft_jax.weights.pretrained import Pretrained


@dataclass(frozen=True)
class Export(Layout):
    """Write a model as a Hugging Face directory that transformers, vLLM and others load."""

    model: ModelPath
    """A Hugging Face directory, a .gguf file, a workdir, or hf://org/name."""
    out: str = ""
    """Directory to create."""
    dtype: Literal["float32", "bfloat16"] = field(default="float32", kw_only=True)
    """Element type of the written tensors."""
    max_shard_bytes: int = 5 * 2**30
    """Largest safetensors file."""


def export(arguments: Sequence[str]) -> int:
    """sft-jax export MODEL --out DIR"""
    options = parse(Export, arguments, "sft-jax export")
    require(options, "out", "sft-jax export")
    at_least(options, 1, "max_shard_bytes")
    check_writable(options.out, directory=True)
    from sft_jax.storage.bucket import local, naming
    from sft_jax.weights.export import export as write_directory

    with loaded(options.model, options) as (pretrained, architecture, parameters), naming(options.out):
        write_directory(
            parameters,
            architecture,
            pretrained.hf_config,
            pretrained.tokenizer,
            local(options.out),
            dtype=options.dtype,
            max_shard_bytes=options.max_shard_bytes,
            generation_config=pretrained.generation_config,
        )
        _describe_export(options, pretrained, parameters)
        send(options.out)
    print(options.out)
    return EXIT_DONE


def _describe_export(options: Export, pretrained: "Pretrained", parameters: dict) -> None:
    """handoff.json beside the exported weights, with the fingerprint of those they were written from."""
    from sft_jax.handoff.artefact import describe_handoff, weights_fingerprint, write_handoff
    from sft_jax.storage.bucket import local

    fingerprint = weights_fingerprint(parameters)
    if is_first_process():
        stops, date = pretrained.stop_ids, pretrained.template_date
        write_handoff(local(options.out), describe_handoff(pretrained.tokenizer, stops, fingerprint, ".", ".", date))
