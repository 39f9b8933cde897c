"""TFDS datasets: registered ones and prepared directories, read without TensorFlow."""

import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from sft_jax.config import Data
from sft_jax.data.forms.formats import demonstrations
from sft_jax.data.read.readers import read_records, read_rows
from sft_jax.data.read.sources import content_digest
from sft_jax.demonstrations import TRAIN
from sft_jax.errors import BadInput

ROWS = [json.loads(line) for line in TRAIN.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def tfds_folder(tmp_path_factory):
    """Where TFDS prepares datasets: not in the home directory."""
    folder = tmp_path_factory.mktemp("tfds")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tfds.core.constants, "DATA_DIR", str(folder))
        yield folder


def refused(name: str, *parts: str) -> None:
    with pytest.raises(BadInput) as caught:
        list(read_rows((name,)))
    for part in (name, *parts):
        assert part in str(caught.value), str(caught.value)


def test_the_projects_own_data_set_is_prepared_and_gives_the_rows_of_its_file(tfds_folder: Path):
    records = list(read_records(("tfds://house_assistant:train",)))
    assert [record.value for record in records] == ROWS
    assert records[-1].where == f"tfds://house_assistant:train:{len(ROWS)}"
    [one] = demonstrations(records[0], Data())
    assert one.id == ROWS[0]["id"] and one.form == "messages"


def test_a_prepared_directory_is_read_also_a_slice_of_it(tfds_folder: Path):
    list(read_rows(("tfds://house_assistant:train",)))
    name = f"tfds://{tfds_folder}/house_assistant/1.0.0"
    for split, count in (("train", 308), ("test", 73), ("train[:3]", 3), ("train[:10%]", 31), ("train+test", 381)):
        assert len(list(read_rows((f"{name}:{split}",)))) == count
    assert len(content_digest(f"{name}:train")) == 64


def test_an_unknown_name_or_split_lists_what_exists(tfds_folder: Path):
    refused("tfds://house_asistant:train", "TFDS has no dataset 'house_asistant'", "Did you mean 'house_assistant'")
    refused("tfds://zzzzzzzzzz:train", "It has", "tfds:///path")
    refused("tfds://house_assistant:trian", "no split 'trian'", "Did you mean 'train'?")
    refused("tfds://house_assistant", "names no split", "Splits: train, test")
    refused("tfds://house_assistant:train[:x]", "Error parsing split")
    refused("tfds://house_assistant:9.0.0:train", "cannot be loaded")
    refused(f"tfds://{tfds_folder}/none/1.0.0:train", "cannot be loaded", "dataset_info.json")
    refused("tfds://:", "expected tfds://name:split")


def test_a_damaged_file_is_no_crash(tfds_folder: Path):
    list(read_rows(("tfds://house_assistant:train",)))
    [part] = (tfds_folder / "house_assistant" / "1.0.0").glob("*train*")
    whole = part.read_bytes()
    try:
        part.write_bytes(whole[: len(whole) // 2])
        refused("tfds://house_assistant:train", "cannot be read")
    finally:
        part.write_bytes(whole)


def test_numbers_lists_and_nested_objects_come_back_as_json_has_them(tmp_path: Path):
    features = tfds.features.FeaturesDict(
        {
            "input_ids": tfds.features.Sequence(np.int32),
            "labels": tfds.features.Tensor(shape=(None,), dtype=np.int32),
            "score": tfds.features.Scalar(np.float32),
            "turns": tfds.features.Sequence({"word": tfds.features.Text(), "n": np.int64}),
            "meta": {"lang": tfds.features.Text()},
        }
    )
    rows = [
        {
            "input_ids": [5, 6, 7],
            "labels": [-100, 6, 7],
            "score": 0.5,
            "turns": [{"word": "é", "n": 1}, {"word": "", "n": 2}],
            "meta": {"lang": "en"},
        },
        {"input_ids": [5], "labels": [5], "score": 1.0, "turns": [], "meta": {"lang": ""}},
    ]

    class Made(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        name = "made_here"

        def _info(self):
            return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

        def _split_generators(self, dl_manager):
            return {"train": list(enumerate(rows))}

        def _generate_examples(self):
            raise NotImplementedError

    builder = Made(data_dir=str(tmp_path), file_format="array_record")
    builder.download_and_prepare()
    records = list(read_records((f"tfds://{builder.data_path}:train",)))
    assert [record.value for record in records] == rows
    assert demonstrations(records[0], Data())[0].weights.tolist() == [0, 1, 1]
    first, _ = read_rows((f"tfds://{builder.data_path}:train",), wanted={"input_ids", "labels"})
    assert first.value == {"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}
    assert set(first.unread) == {"score", "turns", "meta"}
