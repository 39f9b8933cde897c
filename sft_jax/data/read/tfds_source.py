"""Reads TFDS datasets, registered ones and prepared directories, without TensorFlow."""

import importlib
import os
import re
from collections.abc import Collection, Iterator
from typing import Any

from sft_jax.data.read.rows import Row
from sft_jax.errors import BadInput, nearest

_OWN = {"house_assistant": "sft_jax.demonstrations.house_assistant.house_assistant_dataset_builder"}
"""Builders of this package, registered with TFDS on import. By name: data must not import demonstrations."""
_NAME = re.compile(r"tfds://(?P<name>[^:].*?)(?::(?P<split>[A-Za-z_]\w*(?:\[[^\]]*\])?(?:\+[^/]+)?))?")
_AT_ONCE = 64


def read_tfds(source: str, wanted: Collection[str] | None = None) -> Iterator[Row]:
    """The rows of `tfds://name:split` or `tfds:///prepared/directory:split`; `line` is the row's number, from 1.

    A registered dataset is first prepared as ArrayRecord in TFDS's own directory if necessary.

    Args:
      wanted: features to read; None reads all.

    Raises:
      BadInput: an unknown name or split (lists the known ones), or a dataset that cannot be prepared or read.
    """
    name, split = _split(source)
    builder = _builder(source, name)
    if not split or split.split("[")[0].split("+")[0] not in builder.info.splits:
        splits = list(builder.info.splits)
        hint = nearest(split, splits) if split else f"Splits: {', '.join(splits) or 'none'}."
        raise BadInput(f"{source}: {f'no split {split!r}' if split else 'names no split'}. {hint}")
    try:
        data = builder.as_data_source(split)
        feature = builder.info.features
        for first in range(0, len(data), _AT_ONCE):
            values = data.__getitems__(list(range(first, min(first + _AT_ONCE, len(data)))))
            for number, value in enumerate(values, start=first + 1):
                read = {key: child for key, child in value.items() if wanted is None or key in wanted}
                made = {key: _python(feature[key], child) for key, child in read.items()}
                yield Row(source, number, made, unread=tuple(key for key in value if key not in read))
    except (ValueError, NotImplementedError, ImportError, RuntimeError) as error:
        raise BadInput(
            f"{source}: cannot be read: {_first_line(error)}. It must be prepared with file_format='array_record'."
        ) from error


def prepared_directory(source: str) -> str:
    """The directory with the dataset's files; prepares it if necessary."""
    return str(_builder(source, _split(source)[0]).data_path)


def _split(source: str) -> tuple[str, str]:
    named = _NAME.fullmatch(source)
    if named is None:
        raise BadInput(f"{source}: expected tfds://name:split or tfds:///prepared/directory:split")
    return named["name"], named["split"] or ""


def _builder(source: str, name: str) -> Any:
    import tensorflow_datasets as tfds

    try:
        if name.startswith(("/", "./", "../")) or "://" in name or os.path.isdir(name):
            return tfds.builder_from_directory(name)
        plain = name.split(":")[0].split("/")[0]
        if plain in _OWN:
            importlib.import_module(_OWN[plain])
        known = tfds.list_builders(with_community_datasets=False)
        if plain not in known:
            hint = nearest(plain, sorted({*known, *_OWN}))
            raise BadInput(
                f"{source}: TFDS has no dataset {plain!r}. {hint if 'mean' in hint else f'It has {len(known)}.'} For "
                "a prepared directory, use tfds:///path/to/name/1.0.0:split."
            )
        builder = tfds.builder(name, file_format="array_record")
        tfds.disable_progress_bar()
        builder.download_and_prepare()
        return builder
    except (OSError, ValueError, ImportError, AssertionError, RuntimeError) as error:
        raise BadInput(f"{source}: cannot be loaded: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _python(feature: Any, value: Any) -> Any:
    """A TFDS value as plain JSON. TFDS gives a sequence of objects as an object of sequences."""
    import numpy as np
    import tensorflow_datasets as tfds

    if isinstance(feature, tfds.features.FeaturesDict):
        return {key: _python(feature[key], child) for key, child in value.items()}
    if isinstance(feature, tfds.features.Sequence) and isinstance(feature.feature, tfds.features.FeaturesDict):
        if isinstance(value, dict):
            columns = {key: list(column) for key, column in value.items()}
            length = min(map(len, columns.values()), default=0)
            value = [{key: column[i] for key, column in columns.items()} for i in range(length)]
        return [_python(feature.feature, child) for child in value]
    if isinstance(feature, tfds.features.Sequence):
        return [_python(feature.feature, child) for child in value]
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    return value
