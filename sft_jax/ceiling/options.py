"""Options of `sft-jax ceiling`, in addition to the run's config."""

from dataclasses import dataclass

from sft_jax.config import RunConfig


@dataclass(frozen=True)
class Ceiling(RunConfig):
    """Measure whether more or better demonstrations, a larger model or preferences would help, and give a verdict."""

    parts: tuple[int, ...] = (16, 8, 4, 2, 1)
    """Train on 1/16, 1/8, ... of the demonstrations."""
    seeds: int = 2
    """Runs per part, each on a different sample."""
    check: tuple[str, ...] = ("auto",)
    """How to score answers, as in sft-jax evaluate; the first score counts."""
    scorer: str = ""
    """Your own scoring function, file.py:name: (completion, row) -> number in [0, 1]."""
    samples: int = 16
    """Samples per held-out prompt, at temperature 1."""
    prompts: int = 200
    """Answer at most this many held-out prompts."""
    max_new_tokens: int = 256
    """Longest answer, in tokens."""
    larger: str = ""
    """A larger MODEL to train on all demonstrations: does it learn them better?"""
    json: bool = False
    """Print JSON instead of tables."""
    html: str = ""
    """HTML page to write. Empty: ceiling.html in the workdir."""
