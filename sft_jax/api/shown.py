"""A document with its trained tokens coloured, in a notebook and on a terminal."""

from typing import Any

from rich.console import Console

from sft_jax.data.audit import pieces
from sft_jax.data.pack.store import Example
from sft_jax.report.tokens import tokens_html, tokens_text


class Shown:
    """What `Model.show` returns; a notebook shows `_repr_html_`, `print` and a terminal the colours of ANSI."""

    def __init__(self, example: Example, tokenizer: Any):
        self.example = example
        self.pieces = pieces(example, tokenizer)
        """(text, id, weight) of every token."""

    @property
    def trained(self) -> list[int]:
        """Ids of the tokens that train."""
        return [token for _, token, weight in self.pieces if weight]

    def _repr_html_(self) -> str:
        return tokens_html(self.pieces)

    def __rich__(self) -> Any:
        return tokens_text(self.pieces)

    def __str__(self) -> str:
        console = Console(soft_wrap=True, highlight=False, force_terminal=True)
        with console.capture() as capture:
            console.print(self.__rich__())
        return capture.get().rstrip("\n")

    def __repr__(self) -> str:
        return f"Shown({len(self.pieces)} tokens, {len(self.trained)} trained)"
