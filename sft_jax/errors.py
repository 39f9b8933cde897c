"""The library's exceptions, and the exit statuses of the command line."""

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_PREEMPTED = 42
"""A checkpoint was committed after SIGTERM; the same command resumes from it."""


class BadInput(Exception):
    """Invalid input from the user: the message says what was found, what was expected, and how to fix it.

    The command line prints the message without a traceback and exits with status 2.
    """


class BadRow(BadInput):
    """One invalid row of the data; `data.bad_rows="skip"` skips and counts such rows."""


class NonFinite(Exception):
    """The loss or a gradient became NaN or infinite; the message names the step and the rows."""


class Preempted(Exception):
    """The run was asked to stop and has committed a checkpoint."""


def hub_hint(name: str) -> str:
    """A hint for a name that is not on this machine and looks like one of the Hugging Face hub."""
    import re

    return f" For the Hugging Face hub, write hf://{name}." if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name) else ""


def nearest(word: str, known: list[str] | tuple[str, ...]) -> str:
    """A hint such as `Did you mean 'cosine'?`, or the list of known words if none is close."""
    import difflib

    close = difflib.get_close_matches(word, known, n=3, cutoff=0.5)
    if close:
        return "Did you mean " + " or ".join(repr(c) for c in close) + "?"
    return "Known: " + ", ".join(known) + "."
