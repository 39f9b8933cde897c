"""The name table between tensors of Hugging Face checkpoints and our parameters, used in both directions.

A layout names each dimension with the einsum letters; letters written together are flattened into one dimension. The
query kernel is `"NH D"` in the checkpoint (rows: head-major outputs) and `"D N H"` here. Experts are one array here,
`"E D F"`, and separate tensors in the checkpoint, with `{expert}` in their name.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sft_jax.model.architecture import Architecture, split_name
from sft_jax.model.decoder import leaves

EXPERT = "E"


@dataclass(frozen=True)
class Entry:
    """One row of a name table."""

    ours: str
    theirs: str
    our_layout: str
    their_layout: str

    @property
    def letters(self) -> tuple[str, ...]:
        """Letters of our dimensions, excluding stacked layers and experts."""
        return tuple(letter for letter in self.our_layout.split() if letter != EXPERT)

    @property
    def has_experts(self) -> bool:
        return EXPERT in self.our_layout.split()


@dataclass(frozen=True)
class Table:
    """A family's names: top-level parameters, and those of every layer."""

    top: tuple[Entry, ...]
    layer: tuple[Entry, ...]
    layer_prefix: str


DECODER = Table(
    top=(
        Entry("embedding", "model.embed_tokens.weight", "V D", "V D"),
        Entry("final_norm.scale", "model.norm.weight", "D", "D"),
        Entry("head", "lm_head.weight", "V D", "V D"),
        Entry("score", "score.weight", "1 D", "1 D"),
    ),
    layer=(
        Entry("attention_norm.scale", "input_layernorm.weight", "D", "D"),
        Entry("attention.query.kernel", "self_attn.q_proj.weight", "D N H", "NH D"),
        Entry("attention.query.bias", "self_attn.q_proj.bias", "N H", "NH"),
        Entry("attention.query_norm.scale", "self_attn.q_norm.weight", "H", "H"),
        Entry("attention.key.kernel", "self_attn.k_proj.weight", "D K H", "KH D"),
        Entry("attention.key.bias", "self_attn.k_proj.bias", "K H", "KH"),
        Entry("attention.key_norm.scale", "self_attn.k_norm.weight", "H", "H"),
        Entry("attention.value.kernel", "self_attn.v_proj.weight", "D K H", "KH D"),
        Entry("attention.value.bias", "self_attn.v_proj.bias", "K H", "KH"),
        Entry("attention.output.kernel", "self_attn.o_proj.weight", "N H D", "D NH"),
        Entry("attention.output.bias", "self_attn.o_proj.bias", "D", "D"),
        Entry("mlp_norm.scale", "post_attention_layernorm.weight", "D", "D"),
        Entry("mlp.gate.kernel", "mlp.gate_proj.weight", "D F", "F D"),
        Entry("mlp.gate.bias", "mlp.gate_proj.bias", "F", "F"),
        Entry("mlp.up.kernel", "mlp.up_proj.weight", "D F", "F D"),
        Entry("mlp.up.bias", "mlp.up_proj.bias", "F", "F"),
        Entry("mlp.down.kernel", "mlp.down_proj.weight", "F D", "D F"),
        Entry("mlp.down.bias", "mlp.down_proj.bias", "D", "D"),
    ),
    layer_prefix="model.layers.{layer}.",
)

TABLES = {"llama": DECODER, "qwen2": DECODER, "qwen3": DECODER}
"""model_type -> name table. These three families differ only in which rows they use, given by the architecture."""

Sizes = Mapping[str, int]
"""Letter -> size; V is the checkpoint's number of rows, without padding."""


def sizes_of(a: Architecture) -> dict[str, int]:
    """The size of each letter of the layouts."""
    return {"1": 1, "V": a.vocab, "D": a.embed, "F": a.mlp, "N": a.heads, "K": a.kv_heads, "H": a.head_dim}


@dataclass(frozen=True)
class Source:
    """The checkpoint tensors that one of our parameters is read from or written to."""

    entry: Entry
    lead: tuple[int, ...]
    """Leading dimensions of our array that are separate tensors in the checkpoint: stacked layers, then experts."""
    names: tuple[str, ...]
    """Tensor names in the order of `lead`; a single name if `lead` is empty."""

    def name(self, at: tuple[int, ...]) -> str:
        """The tensor at an index of the leading dimensions."""
        return self.names[int(np.ravel_multi_index(at, self.lead)) if at else 0]


def sources_of(a: Architecture, model_type: str, table: Table | None = None) -> dict[str, Source]:
    """Leaf name -> its tensors, for every leaf of the decoder, in layer order.

    Raises:
      KeyError: a parameter is missing from the family's table (a bug in the table).
    """
    table = table or TABLES[model_type]
    return {name: source_of(name, leaf.array.shape, table) for name, leaf in leaves(a).items()}


def source_of(name: str, shape: tuple[int, ...], table: Table) -> Source:
    """The tensors of one leaf.

    Args:
      shape: shape of its kernel.
    """
    layers, suffix = split_name(name)
    if layers is None:
        [entry] = [entry for entry in table.top if entry.ours == name] or [_missing(name)]
        return Source(entry, (), (entry.theirs,))
    [entry] = [entry for entry in table.layer if entry.ours == suffix] or [_missing(suffix)]
    stacked = (len(layers),) if len(layers) > 1 else ()
    experts = (shape[len(stacked)],) if entry.has_experts else ()
    names = tuple(
        (table.layer_prefix + entry.theirs).format(layer=layer, expert=expert)
        for layer in layers
        for expert in range(experts[0] if experts else 1)
    )
    return Source(entry, stacked + experts, names)


def _missing(name: str) -> Entry:
    raise KeyError(f"the family's table has no row for {name}")


def their_shape(entry: Entry, sizes: Sizes) -> tuple[int, ...]:
    """The shape of the checkpoint's tensor."""
    return tuple(math.prod(sizes[letter] for letter in word) for word in entry.their_layout.split())


def their_slices(entry: Entry, sizes: Sizes, ours: Sequence[slice]) -> tuple[slice, ...]:
    """The slice of the checkpoint's tensor that holds the slice `ours` (one per letter) of our parameter.

    Whole heads are contiguous. For a slice within a head (a letter that is not first in its word), whole heads are read
    and `to_ours` cuts them.
    """
    wanted = dict(zip(entry.letters, ours, strict=True))
    slices = []
    for word in entry.their_layout.split():
        inner = math.prod(sizes[letter] for letter in word[1:])
        slices.append(slice(wanted[word[0]].start * inner, wanted[word[0]].stop * inner))
    return tuple(slices)


def to_ours(entry: Entry, sizes: Sizes, ours: Sequence[slice], part: np.ndarray) -> np.ndarray:
    """Convert `part`, read with `their_slices(entry, sizes, ours)`, to our layout (a view where possible)."""
    wanted = dict(zip(entry.letters, ours, strict=True))
    split, cut, order = [], [], []
    for word in entry.their_layout.split():
        for position, letter in enumerate(word):
            whole = position > 0
            split.append(sizes[letter] if whole else wanted[letter].stop - wanted[letter].start)
            cut.append(wanted[letter] if whole else slice(None))
            order.append(letter)
    return part.reshape(split)[tuple(cut)].transpose([order.index(letter) for letter in entry.letters])


def to_theirs(entry: Entry, sizes: Sizes, array: np.ndarray) -> np.ndarray:
    """Convert our kernel (of one layer and expert) to the checkpoint's layout, contiguous."""
    order = [letter for word in entry.their_layout.split() for letter in word]
    moved = array.transpose([entry.letters.index(letter) for letter in order])
    return np.ascontiguousarray(moved.reshape(their_shape(entry, sizes)))


def is_ignored(name: str) -> bool:
    """Whether this is a buffer that old checkpoints store and readers recompute."""
    return name.endswith("rotary_emb.inv_freq")
