"""MODEL of the command line: a Hugging Face directory, a `.gguf` file, or a run's workdir, each also as
`gs://bucket/path`; or `hf://org/name`."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from sft_jax.config import RunConfig, from_json
from sft_jax.data.chat.tokenizer import load_tokenizer
from sft_jax.errors import BadInput
from sft_jax.model.architecture import Architecture
from sft_jax.model.decoder import abstract_parameters, initialise
from sft_jax.model.families import architecture_of
from sft_jax.parallel.rules import axis_parts, shardings
from sft_jax.storage.bucket import MODEL_FILES, below, exists, is_remote, local, naming
from sft_jax.weights.export import stop_tokens
from sft_jax.weights.load import load_parameters, open_model, read_json
from sft_jax.weights.restore import VOCABULARY_PARAMETERS, restore_parameters

CONFIG = RUN_CONFIG = "config.json"


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A model that can be loaded: what it is, and how to read its parameters."""

    origin: str
    architecture: Architecture
    hf_config: dict[str, Any]
    generation_config: dict[str, Any]
    tokenizer: Any
    load: Callable[[Architecture, Mapping[str, NamedSharding]], dict[str, jax.Array]]
    """(architecture with padded rows, shardings) -> float32 parameters, each straight in its shards."""
    template_date: str = ""
    """The day that the chat template printed in training, YYYY-MM-DD; empty means today's."""

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Token ids that end a completion."""
        return tuple(stop_tokens(self.tokenizer, self.generation_config))


def is_workdir(path: str) -> bool:
    """Whether `path` is the workdir of a run of this program."""
    folder = local(path)
    return (folder / MODEL_FILES).is_dir() and (folder / RUN_CONFIG).is_file()


def read_run_config(workdir: str | Path) -> RunConfig:
    """The resolved config a run saved."""
    text = (local(workdir) / RUN_CONFIG).read_text(encoding="utf-8")
    return from_json(text, below(workdir, RUN_CONFIG))


def open_pretrained(path: str, tokenizer: str = "", chat_template: str = "") -> Pretrained:
    """Read what the model is, without its weights.

    Args:
      tokenizer: another tokenizer's directory or file; empty means the model's own.
      chat_template: a Jinja file that replaces the tokenizer's template.

    Raises:
      BadInput: no such model, an unsupported architecture, or a broken tokenizer.
    """
    if is_workdir(path):
        model = local(path) / MODEL_FILES
        config, generation = (
            json.loads((model / name).read_text(encoding="utf-8")) for name in ("config.json", "generation_config.json")
        )
        return Pretrained(
            origin=path,
            architecture=architecture_of(config, str(model)),
            hf_config=config,
            generation_config=generation,
            tokenizer=load_tokenizer(tokenizer or str(model), chat_template),
            load=lambda architecture, shardings: restore_parameters(path, architecture, shardings),
            template_date=read_run_config(path).data.template_date,
        )
    with naming(path):
        files = open_model(_with_weights(path))
    return Pretrained(
        origin=path,
        architecture=files.architecture,
        hf_config=files.config,
        generation_config=files.generation_config,
        tokenizer=load_tokenizer(tokenizer or files.origin, chat_template),
        load=lambda architecture, shardings: load_parameters(files, architecture, shardings),
    )


def _with_weights(path: str) -> str:
    """Where a model lies on this machine; its files are copied from a bucket."""
    if not is_remote(path):
        return path
    if not exists(path):
        raise BadInput(f"{path}: no such file or directory. A model is a Hugging Face directory or a .gguf file.")
    return str(local(path, weights=True))


def open_base(config: RunConfig) -> Pretrained:
    """What a run starts from: the weights at model.path, or random ones for the decoder that is described there.

    Raises:
      BadInput: as `open_pretrained`.
    """
    tokenizer, template = config.data.tokenizer, config.data.chat_template
    if config.model.weights == "pretrained":
        return open_pretrained(config.model.path, tokenizer, template)
    path = local(config.model.path)
    if is_workdir(config.model.path) or not (path / CONFIG).is_file():  # a file or a hub's model holds its own
        return dataclasses.replace(
            open_pretrained(config.model.path, tokenizer, template), load=partial(_initialise, config.train.seed)
        )
    hf_config = read_json(path / CONFIG)
    ids = {key: value for key, value in hf_config.items() if key.endswith("_token_id") and value is not None}
    return Pretrained(
        origin=config.model.path,
        architecture=architecture_of(hf_config, config.model.path),
        hf_config=hf_config,
        generation_config=ids,
        tokenizer=load_tokenizer(tokenizer or str(path), template),
        load=partial(_initialise, config.train.seed),
    )


def _initialise(seed: int, architecture: Architecture, layout: Mapping[str, NamedSharding]) -> dict[str, jax.Array]:
    """Random float32 parameters, the same on every mesh; rows that a layout adds to the vocabulary are zero."""
    own = dataclasses.replace(architecture, vocab_rows=0)
    more = architecture.rows - own.rows

    def make() -> dict[str, jax.Array]:
        made = initialise(own, seed)
        return {
            name: jnp.pad(value, ((0, more), (0, 0))) if name in VOCABULARY_PARAMETERS else value
            for name, value in made.items()
        }

    return jax.jit(make, out_shardings=dict(layout))()


def describe(path: str) -> Architecture:
    """What decoder MODEL is, from as little as tells it: a directory needs nothing but its config.json.

    Raises:
      BadInput: no such model, or an unsupported one.
    """
    place = local(path)
    if path.startswith("hf://") or not place.is_dir():
        with naming(path):
            return open_model(_with_weights(path)).architecture
    name = place / MODEL_FILES / "config.json" if is_workdir(path) else place / "config.json"
    with naming(path):
        return architecture_of(read_json(name), str(name.parent))


def padded(architecture: Architecture, config: RunConfig, mesh: jax.sharding.Mesh) -> Architecture:
    """The architecture with as many vocabulary rows as the layout divides evenly."""
    return architecture.padded_to(axis_parts("vocab", config.sharding, mesh))


def place(
    pretrained: Pretrained, config: RunConfig, mesh: jax.sharding.Mesh
) -> tuple[Architecture, dict[str, jax.Array]]:
    """Load the parameters onto the mesh by the config's layout: (architecture as laid out, parameters)."""
    architecture = padded(pretrained.architecture, config, mesh)
    abstract, axes = abstract_parameters(architecture)
    shapes = {name: leaf.shape for name, leaf in abstract.items()}
    return architecture, pretrained.load(architecture, shardings(shapes, axes, mesh, config.sharding))
