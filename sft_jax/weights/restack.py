"""Restacking of checkpoints whose layers are stacked differently: by a run with frozen layers, or by sft_jax 0.1.

`layers.0:20` and `layers.20:30` of a checkpoint become `layers.0:30` of an uncut decoder, and vice versa. sft_jax 0.1
named the layers of a period `periods.0` and those after it `remainder.0`.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from sft_jax.model.architecture import split_name

_BEFORE = re.compile(r"(periods|remainder)\.(\d+)\.(.+)")


class Stored(NamedTuple):
    """An array of a checkpoint."""

    layers: tuple[int, ...] | None
    """The layers it holds, along its first axis if stacked; None outside layers."""
    suffix: str
    stacked: bool


def stored_layers(shapes: Mapping[str, Sequence[int]]) -> dict[str, Stored]:
    """The layers in each array of a checkpoint, from all names and shapes."""
    before = {name: found for name in shapes if (found := _BEFORE.fullmatch(name))}
    period = 1 + max((int(found[2]) for found in before.values() if found[1] == "periods"), default=-1)
    repeats = max((shapes[name][0] for name, found in before.items() if found[1] == "periods"), default=0)
    stored = {}
    for name in shapes:
        if name in before:
            group, number, suffix = before[name].groups()
            first = int(number)
            layers = (
                tuple(range(first, period * repeats, period)) if group == "periods" else (period * repeats + first,)
            )
            stored[name] = Stored(layers, suffix, group == "periods")
        else:
            layers, suffix = split_name(name)
            stored[name] = Stored(
                None if layers is None else tuple(layers), suffix, layers is not None and len(layers) > 1
            )
    return stored


class Piece(NamedTuple):
    """One layer of an array of a checkpoint."""

    name: str
    row: int | None
    """Index along the first axis; None means the whole array."""


def pieces_of(wanted: Sequence[str], stored: Mapping[str, Stored]) -> dict[str, list[Piece]]:
    """Wanted name -> where its layers are stored, in order; omits names with a missing layer."""
    where: dict[tuple[int | None, str], Piece] = {}
    for name, one in stored.items():
        for row, layer in enumerate(one.layers or (None,)):
            where[layer, one.suffix] = Piece(name, row if one.stacked else None)
    found = {}
    for name in wanted:
        layers, suffix = split_name(name)
        pieces = [where.get((layer, suffix)) for layer in (layers or (None,))]
        if all(piece is not None for piece in pieces):
            found[name] = pieces
    return found


def is_stack(name: str) -> bool:
    """Whether the array of this name is a stack of layers."""
    layers, _ = split_name(name)
    return layers is not None and len(layers) > 1


def as_stored(tree: Any, pieces: Mapping[str, Sequence[Piece]], shapes: Mapping[str, Sequence[int]]) -> Any:
    """Convert a tree of wanted arrays (shape, dtype, sharding) to the names and shapes of the checkpoint.

    Every dict keyed by parameter name, such as an optimizer moment, has the shapes of the parameters.
    """
    if not _is_by_name(tree, pieces):
        return _each(tree, lambda child: as_stored(child, pieces, shapes))
    targets = {}
    for name, like in tree.items():
        for piece in pieces[name]:
            targets[piece.name] = _target(like, is_stack(name), shapes[piece.name], piece.row is not None)
    return targets


def as_requested(tree: Any, wanted: Any, pieces: Mapping[str, Sequence[Piece]]) -> Any:
    """Inverse of `as_stored`, applied to the restored arrays."""
    if not _is_by_name(wanted, pieces):
        return _each(wanted, lambda child, restored: as_requested(restored, child, pieces), tree)
    return {name: _restacked(like, is_stack(name), pieces[name], tree) for name, like in wanted.items()}


def _is_by_name(tree: Any, pieces: Mapping[str, Any]) -> bool:
    return isinstance(tree, dict) and bool(tree) and all(name in pieces for name in tree)


def _each(tree: Any, change: Any, *others: Any) -> Any:
    """Map `change` over a node's children; leaves are returned unchanged (from `others`, if given)."""
    if isinstance(tree, dict):
        return {key: change(child, *(other[key] for other in others)) for key, child in tree.items()}
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(change(*children) for children in zip(tree, *others, strict=True)))
    if isinstance(tree, list | tuple):
        return type(tree)(change(*children) for children in zip(tree, *others, strict=True))
    return others[0] if others else tree


def _target(like: Any, leads: bool, shape: Sequence[int], stacked: bool) -> jax.ShapeDtypeStruct:
    """Restore target of a stored array: the wanted array with the layer axis added or removed.

    Args:
      like: the wanted array, with its sharding; `leads` if it has a layer axis.
      shape: shape of the stored array; `stacked` if it has a layer axis.
    """
    sharding: NamedSharding = like.sharding
    parts = tuple(sharding.spec) + (None,) * (len(like.shape) - len(sharding.spec))
    own = parts[1:] if leads else parts
    spec = PartitionSpec(None, *own) if stacked else PartitionSpec(*own)
    rows = shape if stacked or leads else like.shape  # the vocabulary may be padded differently
    return jax.ShapeDtypeStruct(tuple(rows), like.dtype, sharding=NamedSharding(sharding.mesh, spec))


def _restacked(like: Any, leads: bool, pieces: Sequence[Piece], arrays: Mapping[str, Any]) -> jax.Array:
    """Build the wanted array from pieces of restored ones."""
    if [piece.row for piece in pieces] == [None] and not leads:
        return arrays[pieces[0].name]
    names = list(dict.fromkeys(piece.name for piece in pieces))

    def build(sources: list[jax.Array]) -> jax.Array:
        found = dict(zip(names, sources, strict=True))
        rows = [found[piece.name] if piece.row is None else found[piece.name][piece.row] for piece in pieces]
        return jnp.stack(rows) if leads else rows[0]

    return jax.jit(build, out_shardings=like.sharding)([arrays[name] for name in names])
