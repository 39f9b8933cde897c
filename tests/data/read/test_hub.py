"""The hub: there is none in the tests, so only what is asked of it, and what is said when it does not answer."""

import sys

import datasets
import pytest

from sft_jax.data.read.readers import read_records
from sft_jax.errors import BadInput


def refused(name: str, *parts: str) -> None:
    with pytest.raises(BadInput) as caught:
        list(read_records((name,)))
    for part in (name, *parts):
        assert part in str(caught.value), str(caught.value)


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("hf://org/name:test", ("org/name", "test")),
        ("hf://datasets/org/name:test", ("org/name", "test")),
        ("hf://org/name", ("org/name", "train")),
        ("hf://gsm8k:train", ("gsm8k", "train")),
    ],
)
def test_rows_are_streamed_from_the_split_that_is_named(monkeypatch, name: str, asked):
    def load(given, split, streaming):
        assert (given, split, streaming) == (*asked, True)
        return iter([{"text": "a"}, {"text": "b", "id": None}])

    monkeypatch.setattr(datasets, "load_dataset", load)
    records = list(read_records((name,)))
    assert [(r.where, r.value) for r in records] == [(f"{name}:1", {"text": "a"}), (f"{name}:2", {"text": "b"})]


@pytest.mark.parametrize(
    "error",
    [
        ConnectionError("Couldn't reach 'org/name' on the Hub\nmore"),
        ValueError("Unknown split \"trian\". Should be one of ['train']."),
        datasets.exceptions.DatasetNotFoundError("Dataset 'org/name' doesn't exist on the Hub"),
    ],
)
def test_what_the_hub_refuses_is_said_with_the_way_out(monkeypatch, error: Exception):
    def load(*_, **__):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load)
    refused("hf://org/name:trian", str(error).splitlines()[0], "save_to_disk")


def test_a_missing_package_and_a_malformed_name_are_refused(monkeypatch):
    refused("hf://a/b/c/d", "expected hf://org/name:split")
    monkeypatch.setitem(sys.modules, "datasets", None)
    refused("hf://org/name", "pip install 'sft-jax[hf]'")
