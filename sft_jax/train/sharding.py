"""Shardings of a run's batches, parameters and optimizer state, and checks that they fit the mesh."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from sft_jax.config import RunConfig, Sharding
from sft_jax.data.pack.batches import Batch, PreparedRows
from sft_jax.errors import BadInput
from sft_jax.model.architecture import Architecture
from sft_jax.model.decoder import abstract_parameters
from sft_jax.parallel.nearest import nearest_mesh
from sft_jax.parallel.rules import AnyMesh, Axes, axis_parts, mesh_axes, spec
from sft_jax.train.step import TrainState
from sft_jax.weights.pretrained import laid_out, parameter_shardings

if TYPE_CHECKING:
    from sft_jax.data.pack.streaming import Streamed


def batch_shapes_of(source: "PreparedRows | Streamed") -> Batch:
    """Global shapes of the six arrays of a batch: three [A, b, T], three [A, b, M]."""
    parts = source.accumulation
    rows = source.batch_size // parts
    by_position = (parts, rows, source.tokens_per_row)
    by_target = (parts, rows, source.targets_per_row)
    return Batch(by_position, by_position, by_position, by_target, by_target, by_target)


def abstract_batch(shapes: Batch, layout: Batch | None = None) -> Batch:
    """Shapes and dtypes of the six arrays of a batch, with shardings if given."""
    kinds = (jnp.int32,) * 5 + (jnp.float32,)
    places = (None,) * 6 if layout is None else layout
    arrays = [
        jax.ShapeDtypeStruct(shape, kind, sharding=place)
        for shape, kind, place in zip(shapes, kinds, places, strict=True)
    ]
    return Batch(*arrays)  # type: ignore[arg-type]


def check_batch(config: RunConfig, shapes: Batch, mesh: AnyMesh) -> None:
    """Check that every sharded dimension of a batch is divisible.

    Raises:
      BadInput: names the dimension, both numbers and the nearest valid value.
    """
    parts, rows, length = shapes.tokens
    row_parts = axis_parts("act_batch", config.sharding, mesh)
    if rows % row_parts:
        unit = row_parts * parts
        below, above = rows * parts // unit * unit, -(-rows * parts // unit) * unit
        raise BadInput(
            f"train.batch_size {rows * parts} in {parts} micro-batch(es) gives {rows} rows, not divisible over "
            f"{config.sharding.act_batch} = {row_parts} devices; nearest valid batch sizes: "
            + (f"{below} or {above}" if below else f"{above}")
        )
    for field, size, axis in (
        ("data.sequence_length", length, "act_length"),
        ("data.target_capacity", shapes.target_index[2], "act_targets"),
    ):
        rule, over = getattr(config.sharding, axis), axis_parts(axis, config.sharding, mesh)
        if size % over:
            raise BadInput(
                f"{field} {size} is not divisible over {rule} = {over} devices; "
                f"nearest valid: {-(-size // over) * over}"
            )


def batch_shardings(mesh: AnyMesh, rules: Sharding, micro_batches: bool = True) -> Batch:
    """Rows over act_batch, positions over act_length, targets over act_targets; micro-batches are never sharded."""
    lead = (None,) if micro_batches else ()
    by_position = NamedSharding(mesh, spec((*lead, "act_batch", "act_length"), rules))  # type: ignore[arg-type]
    by_target = NamedSharding(mesh, spec((*lead, "act_batch", "act_targets"), rules))  # type: ignore[arg-type]
    return Batch(by_position, by_position, by_position, by_target, by_target, by_target)  # type: ignore[arg-type]


def state_axes(abstract: TrainState, axes: Mapping[str, Axes]) -> TrainState:
    """Logical axes of every leaf of the state: optimizer state is sharded like its parameter.

    If a leaf has only some of its parameter's dimensions, such as Adafactor's factored second moments, each keeps the
    axis of that dimension. Counters and leaves that match no parameter are replicated.

    Args:
      axes: logical axes of every parameter, by name.
    """

    def of_leaf(path, leaf) -> Axes:
        owner = next((key.key for key in path if isinstance(key, jax.tree_util.DictKey) and key.key in axes), None)
        if owner is None or owner not in abstract.trainable:
            return (None,) * leaf.ndim
        return axes_within(leaf.shape, abstract.trainable[owner].shape, axes[owner])

    return jax.tree_util.tree_map_with_path(of_leaf, abstract)


def axes_within(shape: tuple[int, ...], whole: tuple[int, ...], axes: Axes) -> Axes:
    """Axes of an array whose dimensions are a subsequence of another's; all None if they are not."""
    found, rest = [], list(zip(whole, axes, strict=True))
    for size in shape:
        while rest and rest[0][0] != size:
            rest.pop(0)
        if not rest:
            return (None,) * len(shape)
        found.append(rest.pop(0)[1])
    return tuple(found)


def state_shardings(abstract: TrainState, axes: Mapping[str, Axes], mesh: AnyMesh, rules: Sharding) -> TrainState:
    """The sharding of every leaf of the state, from `state_axes`."""

    def of_axes(own: Axes) -> NamedSharding:
        return NamedSharding(mesh, spec(own, rules))  # type: ignore[arg-type]

    return jax.tree.map(of_axes, state_axes(abstract, axes), is_leaf=is_axes)


def is_axes(node: Any) -> bool:
    """Whether a tree node is the axes of one array rather than a tuple of nodes."""
    return type(node) is tuple and all(axis is None or isinstance(axis, str) for axis in node)


def replicated(mesh: AnyMesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())  # type: ignore[arg-type]


def check_no_idle_axis(axes: Mapping[str, Axes], mesh: AnyMesh, rules: Sharding) -> None:
    """Check that every mesh axis shards a parameter or the batch; otherwise its devices would duplicate work.

    Args:
      axes: logical axes of every parameter.

    Raises:
      BadInput: an axis shards neither; names it.
    """
    divided = {axis for each in axes.values() for axis in each} | {"act_batch", "act_length", "act_targets"}
    used = {name for axis in divided for name in mesh_axes(axis, rules)}
    for name, size in mesh.shape.items():
        if size > 1 and name not in used:
            raise BadInput(
                f"mesh.{name} is {size}, but nothing in this model is sharded over it: its devices would duplicate "
                f"work. Set --mesh.{name} 1 and give the devices to another axis, or use it in a rule (--sharding.*)."
            )


def parameter_layout(
    config: RunConfig, architecture: Architecture, shapes: Batch, mesh: AnyMesh
) -> dict[str, NamedSharding]:
    """The sharding of every parameter, after checking that batch and parameters are divisible.

    Raises:
      BadInput: indivisible or colliding dimensions, with their sizes, and the nearest mesh that works.
    """

    def find(mesh: AnyMesh) -> dict[str, NamedSharding]:
        check_batch(config, shapes, mesh)
        arranged = laid_out(architecture, config, mesh)
        check_no_idle_axis(abstract_parameters(arranged)[1], mesh, config.sharding)
        return parameter_shardings(arranged, mesh, config.sharding)

    def works(mesh: AnyMesh) -> bool:
        try:
            find(mesh)
        except BadInput:
            return False
        return True

    try:
        return find(mesh)
    except BadInput as error:
        other = nearest_mesh(dict(mesh.shape), works)
        if other is None:
            raise
        flags = " ".join(f"--mesh.{axis} {size}" for axis, size in other.items() if (size, mesh.shape[axis]) != (1, 1))
        raise BadInput(f"{error}\nThe nearest mesh that works with these rules and this batch: {flags}") from error
