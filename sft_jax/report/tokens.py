"""The tokens of a document, with trained tokens highlighted."""

from collections.abc import Sequence

from rich.text import Text

from sft_jax.report.render import render

Pieces = Sequence[tuple[str, int, float]]
"""(text, id, weight) of every token, from `data.audit.pieces`."""


def tokens_text(pieces: Pieces) -> Text:
    """For the terminal."""
    return Text.assemble(*((text, "black on green" if weight else "") for text, _, weight in pieces))


def tokens_html(pieces: Pieces) -> str:
    """For a notebook: an element with its own style; hovering over a token shows its id."""
    return str(render("shown.html.jinja", some=pieces))
