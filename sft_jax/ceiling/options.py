"""What `sft-jax ceiling` is told, besides the run's config."""

from dataclasses import dataclass

from sft_jax.config import RunConfig


@dataclass(frozen=True)
class Ceiling(RunConfig):
    """Measure what more demonstrations would buy, what imitation leaves to better ones or to ranking, and say so."""

    parts: tuple[int, ...] = (16, 8, 4, 2, 1)
    """Train on 1/16, 1/8, … of the demonstrations."""
    seeds: int = 2
    """Runs of each part, each on other demonstrations."""
    check: tuple[str, ...] = ("auto",)
    """How answers are scored, as in sft-jax evaluate; the first score counts."""
    scorer: str = ""
    """A function of yours that scores, file.py:name: (completion, row) -> number in [0, 1]."""
    samples: int = 16
    """Samples of each held-out prompt, at temperature 1."""
    prompts: int = 200
    """Held-out prompts that are answered, at most."""
    max_new_tokens: int = 256
    """Longest answer, in tokens."""
    larger: str = ""
    """A larger MODEL, trained alike on all demonstrations: does it learn them better?"""
    json: bool = False
    """Print JSON."""
    html: str = ""
    """File to write the page to; by default ceiling.html in the workdir."""
