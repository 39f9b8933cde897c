"""Which parameters train: patterns matched against per-layer parameter names.

Examples: `head`, `*norm*`, `layers.20-29`, `layers.0-3.attention.*`. `*` is a glob, and a pattern matches everything
below a name. A leaf trains as a whole or not at all, so a stack is cut where its layers differ.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

from sft_jax.errors import BadInput, nearest
from sft_jax.model.architecture import Architecture, split_name
from sft_jax.model.decoder import leaves
from sft_jax.model.leaves import Int8Leaf, Leaf, LowRankLeaf, part_name

_LAYERS = re.compile(r"layers\.(?P<first>\d+)(?:-(?P<last>\d+))?(?:\.(?P<rest>.+))?")


def cut_stacks(patterns: Sequence[str], a: Architecture) -> Architecture:
    """The decoder with its stacks cut at the boundaries of the trained layers.

    Raises:
      BadInput: a pattern that matches no parameter.
    """
    if not patterns:
        return a
    check_patterns(patterns, a)
    trained: list[set[str]] = [set() for _ in range(a.depth)]
    for layer, suffix, name in _by_layer(a):
        if layer is not None and _matches_any(patterns, name):
            trained[layer].add(suffix)
    edges = {i for i in range(1, a.depth) if trained[i] != trained[i - 1]}
    return replace(a, cuts=tuple(sorted({*a.cuts, *edges})))


def trainable_names(patterns: Sequence[str], a: Architecture) -> frozenset[str]:
    """Names of the arrays that train. Without patterns: all, or only the adapters of a decoder that has them.

    Args:
      a: as returned by `cut_stacks`.

    Raises:
      BadInput: a pattern that matches no parameter, or one that matches int8 kernels.
    """
    check_patterns(patterns, a)
    adapted = any(isinstance(leaf, LowRankLeaf) for leaf in leaves(a).values())
    names: set[str] = set()
    for name, leaf in leaves(a).items():
        layers, suffix = split_name(name)
        own = name if layers is None else f"layers.{layers[0]}.{suffix}"
        if isinstance(leaf, LowRankLeaf):
            names |= {part_name(name, part) for part in ("lora_a", "lora_b")}
        elif _matches_any(patterns, own) if patterns else not adapted:
            _refuse_int8(name, leaf)
            names |= {part_name(name, part) for part in leaf.parts}
    return frozenset(names)


def _refuse_int8(name: str, leaf: Leaf) -> None:
    if isinstance(leaf, Int8Leaf):
        raise BadInput(
            f"{name} is stored as int8 and cannot train: updates smaller than one quantisation step would be lost. "
            "Load the model with --model.quantization none, or train other parameters with --train.trainable, such "
            "as '*norm*'"
        )


def check_patterns(patterns: Sequence[str], a: Architecture) -> None:
    """Raises BadInput if a pattern matches no parameter; suggests close matches."""
    known = {name for _, _, name in _by_layer(a)}
    for pattern in patterns:
        found = _LAYERS.fullmatch(pattern)
        if found and int(found["last"] or found["first"]) >= a.depth:
            raise BadInput(f"train.trainable {pattern!r}: the model has layers 0 to {a.depth - 1}")
        if any(_matches(pattern, name) for name in known):
            continue
        if pattern == "head" and a.tied:
            raise BadInput("train.trainable 'head': this model ties its head to the embedding. Use 'embedding'")
        shown = sorted({re.sub(r"layers\.\d+", "layers.0", name) for name in known})
        raise BadInput(f"train.trainable {pattern!r} matches no parameter of this model. {nearest(pattern, shown)}")


def _by_layer(a: Architecture) -> Iterator[tuple[int | None, str, str]]:
    """(layer, suffix, per-layer name) of every leaf; the layer is None outside layers."""
    for name in leaves(a):
        layers, suffix = split_name(name)
        if layers is None:
            yield None, name, name
        for layer in layers or ():
            yield layer, suffix, f"layers.{layer}.{suffix}"


def _matches_any(patterns: Sequence[str], name: str) -> bool:
    return any(_matches(pattern, name) for pattern in patterns)


def _matches(pattern: str, name: str) -> bool:
    if found := _LAYERS.fullmatch(pattern):
        layers, suffix = split_name(name)
        first, last = int(found["first"]), int(found["last"] or found["first"])
        within = layers is not None and first <= layers[0] <= last
        return within and (found["rest"] is None or _globbed(found["rest"], suffix))
    return _globbed(pattern, name)


def _globbed(pattern: str, name: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")


def split_parameters(parameters: Mapping, trained: frozenset[str]) -> tuple[dict, dict]:
    """Split a dict keyed by parameter name into (trainable, frozen)."""
    trainable = {name: value for name, value in parameters.items() if name in trained}
    return trainable, {name: value for name, value in parameters.items() if name not in trained}
