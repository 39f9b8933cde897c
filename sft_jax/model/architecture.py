"""What a decoder is made of: sizes and switches, independent of any family's file format."""

from dataclasses import dataclass, replace

from sft_jax.errors import BadInput


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
class LayerKind:
    """What may differ from layer to layer within a period."""

    window: int | None = None
    """Sliding attention window in tokens; None attends to the whole document."""
    rope: bool = True
    """False leaves positions out (NoPE layers)."""


@dataclass(frozen=True)
class Architecture:
    """Sizes (D, F, L, N, K, H, V of DESIGN) and switches of one decoder."""

    vocab: int
    embed: int
    mlp: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    max_positions: int
    rope: Rope = Rope()
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
    period: tuple[LayerKind, ...] = (LayerKind(),)
    """The kinds that repeat; layers = periods * len(period) + remainder."""
    reward: bool = False
    """A scalar head, `score`, in the place of the vocabulary's: a reward model."""
    vocab_rows: int = 0
    """Rows of the embedding and head as stored: >= vocab where a layout needs divisibility; 0 means vocab."""

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads:
            raise BadInput(f"{self.heads} query heads are not a multiple of {self.kv_heads} key/value heads")
        if self.vocab_rows and self.vocab_rows < self.vocab:
            raise BadInput(f"vocab_rows {self.vocab_rows} < vocab {self.vocab}")

    @property
    def rows(self) -> int:
        return self.vocab_rows or self.vocab

    @property
    def periods(self) -> int:
        return self.layers // len(self.period)

    @property
    def remainder(self) -> tuple[LayerKind, ...]:
        """The kinds of the layers after the last whole period."""
        return self.period[: self.layers % len(self.period)]

    def padded_to(self, multiple: int) -> "Architecture":
        """The same decoder with embedding and head rows rounded up; the new rows get no probability mass."""
        return replace(self, vocab_rows=-(-self.vocab // multiple) * multiple)


def shortest_period(kinds: tuple[LayerKind, ...]) -> tuple[LayerKind, ...]:
    """The shortest prefix whose repetition gives `kinds` (the last repetition may be cut)."""
    for length in range(1, len(kinds) + 1):
        if all(kind == kinds[i % length] for i, kind in enumerate(kinds)):
            return kinds[:length]
    raise BadInput("a decoder needs at least one layer")


def model_flops(a: Architecture, tokens: float, target_tokens: float, pairs: float) -> float:
    """Floating-point operations one training step needs: forward and backward, no recomputation, no padding.

    Args:
      tokens: tokens through the layers.
      target_tokens: positions through the head.
      pairs: (query, key) pairs that see each other, over all documents: sum of length * (length + 1) / 2.

    A product of an [n, i] by an [i, o] matrix is 2nio; the backward pass is two of them (Kaplan et al. 2020, §2.1).
    """
    attention = a.embed * a.head_dim * (2 * a.heads + 2 * a.kv_heads)
    layer = attention + 3 * a.embed * a.mlp
    scores = 2 * a.heads * a.head_dim
    head = (1 if a.reward else a.vocab) * a.embed
    return 6.0 * (a.layers * (layer * tokens + scores * pairs) + head * target_tokens)
