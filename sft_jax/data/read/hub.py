"""Rows of a dataset on the Hugging Face hub, streamed with the optional package `datasets`."""

import re
from collections.abc import Collection, Iterator

from sft_jax.data.read.rows import Row, table_row
from sft_jax.errors import BadInput

_NAME = re.compile(r"hf://(?:datasets/)?(?P<name>[\w.-]+(?:/[\w.-]+)?)(?::(?P<split>[\w.-]+))?")


def read_hub(source: str, wanted: Collection[str] | None = None) -> Iterator[Row]:
    """The rows of `hf://org/name:split` or `hf://datasets/org/name:split` (no split means train).

    Args:
      wanted: columns that may be read; None reads all.

    Raises:
      BadInput: malformed name, the package `datasets` is missing, or the hub cannot be reached.
    """
    named = _NAME.fullmatch(source)
    if named is None:
        raise BadInput(f"{source}: expected hf://org/name:split, such as hf://openai/gsm8k:train")
    try:
        import datasets
        from datasets.exceptions import DatasetsError
    except ImportError as error:
        raise BadInput(f"{source}: reading from the hub needs the extra hf: pip install 'sft-jax[hf]'") from error
    name, split = named["name"], named["split"] or "train"
    advice = (
        "Check the name, the split and the network. Offline, download the dataset elsewhere, save it with "
        "save_to_disk, and pass that directory."
    )
    try:
        rows = datasets.load_dataset(name, split=split, streaming=True)
        for number, value in enumerate(rows, start=1):
            yield table_row(source, number, dict(value), wanted)
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        lines = str(error).splitlines() or [type(error).__name__]
        raise BadInput(f"{source}: cannot be read from the hub: {lines[0]}. {advice}") from error
