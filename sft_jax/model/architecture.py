"""The architecture of a decoder: sizes and one `LayerSpec` per layer, independent of any family's file format."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

from sft_jax.errors import BadInput
from sft_jax.model.leaves import Storage


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding (Su et al. 2021), with the frequency scalings in use."""

    theta: float = 10_000.0
    kind: str = "default"
    """default; linear (every frequency divided by factor); llama3 (Llama 3.1: low frequencies only)."""
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_positions: int = 8192


@dataclass(frozen=True)
class LayerSpec:
    """What may differ between layers. Layers with equal specs share one compiled program."""

    window: int | None = None
    """Sliding attention window in tokens; None attends to the whole document."""
    rope: Rope | None = Rope()
    """None for a layer without positional encoding (NoPE)."""


class Group(NamedTuple):
    """Consecutive layers that run as one loop: a period of `specs`, repeated `repeats` times, from layer `start`."""

    start: int
    specs: tuple[LayerSpec, ...]
    repeats: int

    def layers(self, place: int) -> range:
        """The layers at index `place` of the period; their arrays are stacked in this order."""
        period = len(self.specs)
        first = self.start + place
        return range(first, first + period * (self.repeats - 1) + 1, period)


@dataclass(frozen=True)
class Architecture:
    """Sizes (D, F, N, K, H, V of the einsums), options and layers of a decoder, and how its arrays are stored."""

    vocab: int
    embed: int
    mlp: int
    layers: tuple[LayerSpec, ...]
    """One per layer, in order."""
    heads: int
    kv_heads: int
    head_dim: int
    max_positions: int
    norm_eps: float = 1e-5
    tied: bool = False
    """The head is the embedding."""
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    """RMSNorm over each query's and key's head_dim, before RoPE (Qwen3)."""
    attention_softcap: float | None = None
    """Attention scores become cap * tanh(score / cap)."""
    logit_softcap: float | None = None
    """Logits become cap * tanh(logit / cap)."""
    reward: bool = False
    """A reward model: a scalar head, `score`, replaces the vocabulary head."""

    # How arrays are stored. None of these changes the function that the decoder computes.
    vocab_rows: int = 0
    """Stored rows of the embedding and head: >= vocab where a layout needs divisibility; 0 means vocab."""
    cuts: tuple[int, ...] = ()
    """Layer indices at which stacks are split, so that the layers on either side have separate arrays."""
    storage: Storage = ()
    """Kernels that are not stored as one float32 array."""

    def __post_init__(self) -> None:
        if not self.layers:
            raise BadInput("a decoder needs at least one layer")
        if self.heads % self.kv_heads:
            raise BadInput(f"{self.heads} query heads are not a multiple of {self.kv_heads} key/value heads")
        if self.vocab_rows and self.vocab_rows < self.vocab:
            raise BadInput(f"vocab_rows {self.vocab_rows} < vocab {self.vocab}")

    @property
    def depth(self) -> int:
        """L, the number of layers."""
        return len(self.layers)

    @property
    def rows(self) -> int:
        """Stored rows of the embedding and head."""
        return self.vocab_rows or self.vocab

    @property
    def plain(self) -> "Architecture":
        """The same decoder without storage choices: what its config.json describes."""
        return replace(self, vocab_rows=0, cuts=(), storage=())

    @property
    def groups(self) -> tuple[Group, ...]:
        """The loops that run the layers, in order."""
        edges = (0, *sorted({cut for cut in self.cuts if 0 < cut < self.depth}), self.depth)
        return tuple(group for start, end in pairwise(edges) for group in grouped(self.layers[start:end], start))

    def padded_to(self, multiple: int) -> "Architecture":
        """The same decoder with embedding and head rows rounded up; the new rows get no probability mass."""
        return replace(self, vocab_rows=-(-self.vocab // multiple) * multiple)


def shortest_period(specs: tuple[LayerSpec, ...]) -> tuple[LayerSpec, ...]:
    """The shortest prefix whose repetition gives `specs` (the last repetition may be incomplete)."""
    for length in range(1, len(specs) + 1):
        if all(spec == specs[i % length] for i, spec in enumerate(specs)):
            return specs[:length]
    return specs


def runs(specs: tuple[LayerSpec, ...], start: int) -> Iterator[Group]:
    """A group for each run of equal layers."""
    first = 0
    for i in range(1, len(specs) + 1):
        if i == len(specs) or specs[i] != specs[first]:
            yield Group(start + first, (specs[first],), i - first)
            first = i


def grouped(specs: tuple[LayerSpec, ...], start: int) -> tuple[Group, ...]:
    """The layers from `start` as loops over the shortest period or over runs of equal layers, whichever compiles fewer
    layers."""
    period = shortest_period(specs)
    whole = len(specs) // len(period)
    by_period = (Group(start, period, whole), *runs(specs[whole * len(period) :], start + whole * len(period)))
    by_run = tuple(runs(specs, start))
    return by_run if len(by_run) < sum(len(group.specs) for group in by_period) else by_period


def stack_name(layers: range) -> str:
    """The name prefix of these layers' arrays: `layers.7`, `layers.0:30`, or `layers.1:9:2` for every second layer."""
    if len(layers) == 1:
        return f"layers.{layers[0]}"
    return f"layers.{layers[0]}:{layers[-1] + 1}" + (f":{layers.step}" if layers.step > 1 else "")


def split_name(name: str) -> tuple[range | None, str]:
    """`layers.0:30.mlp.up.kernel` -> (range(0, 30), `mlp.up.kernel`); (None, name) outside layers."""
    group, _, rest = name.partition(".")
    if group != "layers":
        return None, name
    stack, _, suffix = rest.partition(".")
    first, *more = (int(part) for part in stack.split(":"))
    return range(first, *more) if more else range(first, first + 1), suffix


def model_flops(a: Architecture, tokens: float, target_tokens: float, pairs: float) -> float:
    """FLOPs of one training step: forward and backward, excluding recomputation and padding.

    Args:
      tokens: number of tokens through the layers.
      target_tokens: number of positions through the head.
      pairs: (query, key) pairs that see each other, summed over layers: `row_pairs`, or
        `losses/objective.counts_of` of packed rows.

    A product of an [n, i] by an [i, o] matrix is 2nio; the backward pass is two of them (Kaplan et al. 2020, §2.1).
    """
    attention = a.embed * a.head_dim * (2 * a.heads + 2 * a.kv_heads)
    layer = attention + 3 * a.embed * a.mlp
    scores = 2 * a.heads * a.head_dim
    head = (1 if a.reward else a.vocab) * a.embed
    return 6.0 * (a.depth * layer * tokens + scores * pairs + head * target_tokens)


def row_pairs(a: Architecture, length: int) -> float:
    """(query, key) pairs that see each other in a row of one document, summed over layers."""
    pairs = 0.0
    for spec in a.layers:
        window = min(spec.window or length, length)
        pairs += window * (window + 1) / 2 + (length - window) * window
    return pairs
