"""The TFDS builder of the shipped demonstrations; works without TensorFlow."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from sft_jax.demonstrations import HELD_OUT, TRAIN


class Builder(tfds.core.GeneratorBasedBuilder):
    """Serves the demonstrations (`train`) and the held-out requests (`test`), one example per conversation."""

    name = "house_assistant"
    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, file_format: str | tfds.core.FileFormat = "array_record", **options: Any):
        # TFDS defaults to TFRecord, which only TensorFlow can read and which has no random access.
        super().__init__(file_format=file_format, **options)

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "id": tfds.features.Text(),
                    "kind": tfds.features.Text(),
                    "messages": tfds.features.Sequence(
                        {"role": tfds.features.Text(), "content": tfds.features.Text()},
                    ),
                }
            ),
            supervised_keys=None,
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator[tuple[int, Any]]]:
        del dl_manager  # The files ship with the package.
        return {"train": self._generate_examples(TRAIN), "test": self._generate_examples(HELD_OUT)}

    def _generate_examples(self, path: Path) -> Iterator[tuple[int, Any]]:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines):
                yield number, json.loads(line)
