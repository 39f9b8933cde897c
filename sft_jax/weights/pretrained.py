"""Resolve MODEL of the command line: a Hugging Face directory, a `.gguf` file or a run's workdir (each also as
`gs://bucket/path`), or `hf://org/name`."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from sft_jax.config import Data, RunConfig, Sharding, from_json
from sft_jax.data.chat.rendering import RenderOptions, render_options_of
from sft_jax.data.chat.tokenizer import load_tokenizer, with_stops
from sft_jax.errors import BadInput
from sft_jax.model.adapters import storage_of
from sft_jax.model.architecture import Architecture
from sft_jax.model.decoder import abstract_parameters, initialise
from sft_jax.model.families import architecture_of
from sft_jax.model.leaves import Int8, Storage
from sft_jax.model.trainable import cut_stacks
from sft_jax.parallel.rules import AnyMesh, axis_parts, shardings
from sft_jax.storage.copies import MODEL_FILES
from sft_jax.storage.location import Location, as_location
from sft_jax.weights.export import stop_tokens
from sft_jax.weights.fingerprint import weights_fingerprint
from sft_jax.weights.load import load_parameters, open_model, read_json
from sft_jax.weights.restack import as_requested, as_stored, pieces_of, stored_layers
from sft_jax.weights.restore import VOCABULARY_PARAMETERS, restore_parameters

CONFIG = RUN_CONFIG = "config.json"


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A model whose weights are not loaded yet."""

    origin: str
    architecture: Architecture
    hf_config: dict[str, Any]
    generation_config: dict[str, Any]
    tokenizer: Any
    load: Callable[[Architecture, Mapping[str, NamedSharding]], dict[str, jax.Array]]
    """(architecture as laid out, name -> sharding of all or some arrays) -> these arrays, loaded shard by shard."""
    data: Data = dataclasses.field(default_factory=Data)
    """How the run that trained it read its data; the defaults if there was none."""

    @property
    def template_date(self) -> str:
        """Date that the chat template rendered in training, YYYY-MM-DD; empty means today."""
        return self.data.template_date

    @property
    def rendering(self) -> RenderOptions:
        """How conversations become text for this model."""
        return render_options_of(self.data)

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Token ids that end a completion."""
        return tuple(stop_tokens(self.tokenizer, self.generation_config))


def is_workdir(location: Location) -> bool:
    """Whether this is the workdir of a training run."""
    folder = location.local()
    return (folder / MODEL_FILES).is_dir() and (folder / RUN_CONFIG).is_file()


def read_run_config(workdir: Location) -> RunConfig:
    """The resolved config saved by a run."""
    text = (workdir.local() / RUN_CONFIG).read_text(encoding="utf-8")
    return from_json(text, str(workdir / RUN_CONFIG))


def open_pretrained(path: Location | str | Path, tokenizer: str = "", chat_template: str = "") -> Pretrained:
    """Open a model without reading its weights.

    Args:
      tokenizer: directory or file of another tokenizer; empty means the model's own.
      chat_template: a Jinja file that replaces the tokenizer's template.

    Raises:
      BadInput: no such model, an unsupported architecture, or a broken tokenizer.
    """
    location = as_location(path)
    if is_workdir(location):
        model, run = location.local() / MODEL_FILES, read_run_config(location)
        config, generation = (
            json.loads((model / name).read_text(encoding="utf-8")) for name in ("config.json", "generation_config.json")
        )
        return Pretrained(
            origin=str(location),
            architecture=as_trained(architecture_of(config, str(model)), run),
            hf_config=config,
            generation_config=generation,
            tokenizer=with_stops(load_tokenizer(tokenizer or str(model), chat_template), generation),
            load=lambda architecture, shardings: _load_run(location, run, architecture, shardings),
            data=run.data,
        )
    with location.url_in_errors():
        files = open_model(_local_path(location))
    return Pretrained(
        origin=str(location),
        architecture=files.architecture,
        hf_config=files.config,
        generation_config=files.generation_config,
        tokenizer=with_stops(load_tokenizer(tokenizer or files.origin, chat_template), files.generation_config),
        load=lambda architecture, shardings: load_parameters(files, architecture, shardings),
    )


def _local_path(location: Location) -> str:
    """Local path of a model; fetches its files if it is in a bucket."""
    if not location.is_remote:
        return str(location)
    if not location.exists():
        raise BadInput(f"{location}: no such file or directory. A model is a Hugging Face directory or a .gguf file.")
    return str(location.local(weights=True))


def open_base(config: RunConfig, locate: Callable[[str], Location] = Location) -> Pretrained:
    """The model that a run starts from: the weights at model.path, or random ones for its architecture.

    Args:
      locate: path -> Location; lets several runs share one local copy of a bucket directory.

    Raises:
      BadInput: as `open_pretrained`.
    """
    tokenizer, template = config.data.tokenizer, config.data.chat_template
    location = locate(config.model.path)
    if config.model.weights == "pretrained":
        return open_pretrained(location, tokenizer, template)
    path = location.local()
    if is_workdir(location) or not (path / CONFIG).is_file():  # a .gguf file or a hub model has its own config
        return dataclasses.replace(
            open_pretrained(location, tokenizer, template), load=partial(_initialise, config.train.seed)
        )
    hf_config = read_json(path / CONFIG)
    ids = {key: value for key, value in hf_config.items() if key.endswith("_token_id") and value is not None}
    return Pretrained(
        origin=config.model.path,
        architecture=architecture_of(hf_config, config.model.path),
        hf_config=hf_config,
        generation_config=ids,
        tokenizer=with_stops(load_tokenizer(tokenizer or str(path), template), ids),
        load=partial(_initialise, config.train.seed),
    )


def _load_run(
    workdir: Location, run: RunConfig, architecture: Architecture, layout: Mapping[str, NamedSharding]
) -> dict[str, jax.Array]:
    """The arrays of a run's newest checkpoint; frozen parameters are loaded from the base model.

    Raises:
      BadInput: no finished checkpoint, one of another model, or a base that has changed since.
    """
    shapes = abstract_parameters(architecture)[0]
    wanted = {
        name: jax.ShapeDtypeStruct(shapes[name].shape, shapes[name].dtype, sharding=where)
        for name, where in layout.items()
    }
    cuts = as_trained(architecture.plain, run).cuts
    if not set(cuts) <= set(architecture.cuts):  # a requested stack may mix trained and frozen layers
        cut = dataclasses.replace(architecture, cuts=tuple(sorted({*architecture.cuts, *cuts})))
        as_run = {name: shape.shape for name, shape in abstract_parameters(cut)[0].items()}
        pieces = pieces_of(list(wanted), stored_layers(as_run))
        targets = as_stored(wanted, pieces, as_run)
        found = _load_run(workdir, run, cut, {name: target.sharding for name, target in targets.items()})
        return as_requested(found, wanted, pieces)
    found, record = restore_parameters(workdir, wanted, architecture.vocab)
    rest = {name: where for name, where in layout.items() if name not in found}
    if not rest:
        return found
    frozen = open_base(run).load(architecture, rest)
    if len(layout) == len(shapes):
        check_base(str(workdir), run.model.path, record, frozen)
    return {**frozen, **found}


def check_base(workdir: str, base: str, record: Mapping[str, Any], frozen: Mapping[str, jax.Array]) -> None:
    """Check that the frozen weights are those the run was trained on; every process must call it.

    Raises:
      BadInput: they differ; names both fingerprints.
    """
    expected, found = record["base"]["fingerprint"], weights_fingerprint(frozen)
    if found != expected:
        raise BadInput(
            f"{workdir} trained a part of {base}, whose frozen weights have changed since (fingerprint was "
            f"{expected[:12]}, now {found[:12]}). Restore the model's files."
        )


def _initialise(seed: int, architecture: Architecture, layout: Mapping[str, NamedSharding]) -> dict[str, jax.Array]:
    """Random float32 parameters, the same on every mesh; padding rows of the vocabulary are zero."""
    own = dataclasses.replace(architecture, vocab_rows=0)
    more = architecture.rows - own.rows

    def make() -> dict[str, jax.Array]:
        made = initialise(own, seed)
        return {
            name: jnp.pad(made[name], ((0, more), (0, 0))) if name in VOCABULARY_PARAMETERS else made[name]
            for name in layout
        }

    return jax.jit(make, out_shardings=dict(layout))()


def architecture_at(path: str) -> Architecture:
    """The architecture of MODEL, from config.json alone where possible.

    Raises:
      BadInput: no such model, or an unsupported one.
    """
    location = Location(path)
    folder = location.local()
    with location.url_in_errors():
        if path.startswith("hf://") or not folder.is_dir():
            return open_model(_local_path(location)).architecture
        name = folder / MODEL_FILES / "config.json" if is_workdir(location) else folder / "config.json"
        return architecture_of(read_json(name), str(name.parent))


def as_trained(architecture: Architecture, config: RunConfig) -> Architecture:
    """The decoder with its arrays stored as in the run: quantised, with adapters, stacks cut where training differs.

    Raises:
      BadInput: a pattern in train.trainable matches no parameter.
    """
    storage: Storage = architecture.storage
    if config.model.quantization == "int8":
        storage = (*storage, ("*.kernel", Int8()))
    storage = (*storage, *storage_of(config.adapter))
    return cut_stacks(config.train.trainable, dataclasses.replace(architecture, storage=storage))


def laid_out(architecture: Architecture, config: RunConfig, mesh: AnyMesh) -> Architecture:
    """`as_trained`, with the vocabulary rows padded to a multiple of their shards."""
    return as_trained(architecture, config).padded_to(axis_parts("vocab", config.sharding, mesh))


def put_on_devices(
    pretrained: Pretrained, config: RunConfig, mesh: jax.sharding.Mesh
) -> tuple[Architecture, dict[str, jax.Array]]:
    """Load the parameters onto the mesh in the config's layout: (architecture as laid out, parameters)."""
    architecture = laid_out(pretrained.architecture, config, mesh)
    return architecture, pretrained.load(architecture, parameter_shardings(architecture, mesh, config.sharding))


def parameter_shardings(architecture: Architecture, mesh: AnyMesh, rules: Sharding) -> dict[str, NamedSharding]:
    """The sharding of every parameter array, by name.

    Raises:
      BadInput: as `parallel.rules.shardings`.
    """
    abstract, axes = abstract_parameters(architecture)
    return shardings({name: leaf.shape for name, leaf in abstract.items()}, axes, mesh, rules)
