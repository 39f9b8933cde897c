"""Names: which files and datasets they stand for, here and in buckets."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from etils import epath

from sft_jax.data.read import sources
from sft_jax.data.read.readers import read_records
from sft_jax.data.read.sources import content_digest, find_files
from sft_jax.errors import BadInput


def refused(pattern: object, *parts: str) -> None:
    with pytest.raises(BadInput) as caught:
        find_files((str(pattern),))
    for part in (str(pattern), *parts):
        assert part in str(caught.value), str(caught.value)


def test_a_glob_gives_its_files_in_sorted_order_and_several_paths_in_the_order_given(tmp_path: Path, jsonl):
    b, a = jsonl([{"text": "b"}], "b.jsonl"), jsonl([{"text": "a"}], "a.jsonl")
    assert find_files((str(tmp_path / "*.jsonl"),)) == [a, b]
    assert find_files((b, a)) == [b, a]


def test_a_missing_file_names_the_nearest_existing_one(tmp_path: Path, jsonl):
    jsonl([{}], "train.jsonl")
    refused(tmp_path / "trian.jsonl", "no such file", "Did you mean 'train.jsonl'?")
    refused(tmp_path / "x*.jsonl", "no file matches", "train.jsonl")
    refused(tmp_path / "gone" / "a.jsonl", "no such file")


def test_a_file_of_another_kind_is_refused(tmp_path: Path):
    for name, end in (("a.csv", ".csv"), ("b.parquet.gz", ".gz"), ("c", "''")):
        (tmp_path / name).touch()
        refused(tmp_path / name, end, "expected .jsonl or .json", "Convert or rename")


def test_a_directory_stands_for_its_files_of_known_kinds_and_nothing_further_down(tmp_path: Path, jsonl):
    (tmp_path / "below").mkdir()
    refused(tmp_path, "a directory without a .jsonl", "It contains: below", "**/*.jsonl")
    files = [jsonl([{"text": name}], name) for name in ("a.jsonl", "b.json", "c.parquet", ".hidden.jsonl", "README.md")]
    (tmp_path / "below" / "d.jsonl").touch()
    assert find_files((str(tmp_path),)) == files[:3]


def test_a_tfds_directory_is_named_with_its_split(tmp_path: Path):
    (tmp_path / "features.json").touch()
    (tmp_path / "dataset_info.json").touch()
    refused(tmp_path, f"tfds://{tmp_path}:train")


def test_a_directory_that_may_not_be_listed_is_refused(tmp_path: Path, monkeypatch):
    def deny(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "listdir", deny)
    refused(tmp_path, "Permission denied")


def test_data_sets_stand_for_themselves():
    names = ("tfds://house_assistant:train", "hf://org/name:train")
    assert find_files(names) == list(names)


def test_an_unknown_scheme_names_the_known_ones():
    refused("ftp://host/a.jsonl", "unknown scheme ftp://", "gs://", "tfds://")


def test_a_bucket_without_its_package_names_the_package(monkeypatch):
    from etils.epath import backend

    def missing(self, name):
        raise ImportError("Please install gcsfs to access Google Storage")

    monkeypatch.setattr(backend._FileSystemSpecBackend, "_get_filesystem", missing)
    refused("gs://bucket/a.jsonl", "pip install gcsfs")
    refused("s3://bucket/*.jsonl", "pip install s3fs")


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch):
    """`gs://bucket/` lies in a directory here: epath's own code runs, its file system is a local one."""
    import fsspec
    from etils.epath import backend
    from fsspec.implementations.dirfs import DirFileSystem

    inside = DirFileSystem(path=str(tmp_path), fs=fsspec.filesystem("file"))

    def strip(path: object) -> str:
        return os.fspath(path).removeprefix("gs://").removeprefix("/gs/")  # type: ignore[call-overload]

    files = SimpleNamespace(  # what epath asks of gcsfs
        open=lambda path, mode: inside.open(strip(path), mode),
        exists=lambda path: inside.exists(strip(path)),
        isdir=lambda path: inside.isdir(strip(path)),
        glob=lambda path: inside.glob(strip(path)),
        listdir=lambda path, detail: inside.ls(strip(path), detail=detail),
    )
    monkeypatch.setattr(backend._FileSystemSpecBackend, "_get_filesystem", lambda self, name: files)
    (tmp_path / "bucket").mkdir()
    return tmp_path / "bucket"


def test_files_in_a_bucket_are_found_and_read(bucket: Path):
    for name in ("b", "a"):
        (bucket / f"{name}.jsonl").write_text(f'{{"text": "{name}"}}\n')
    (bucket / "README.md").touch()
    both = ["gs://bucket/a.jsonl", "gs://bucket/b.jsonl"]
    assert find_files(("gs://bucket/*.jsonl",)) == both == find_files(("gs://bucket",))
    records = list(read_records(("gs://bucket/b.jsonl", "gs://bucket/a.jsonl")))
    assert [(r.where, r.value["text"]) for r in records] == [(f"{both[1]}:1", "b"), (f"{both[0]}:1", "a")]
    assert content_digest(both[0]) == content_digest(str(bucket / "a.jsonl"))
    refused("gs://bucket/c.jsonl", "no such file")
    refused("gs://bucket/c*", "no file matches")
    refused("gs://bucket/**", "not supported")
    refused("gs://bucket/README.md", "'.md'")


def test_the_digest_is_that_of_the_content(tmp_path: Path, jsonl):
    a, b = jsonl([{"text": "a"}], "a.jsonl"), jsonl([{"text": "a"}], "b.jsonl")
    assert content_digest(a) == content_digest(b)
    before = content_digest(str(tmp_path))
    Path(b).write_text('{"text": "b"}\n')
    assert content_digest(a) != content_digest(b) and content_digest(str(tmp_path)) != before


def test_the_kind_is_read_off_the_name():
    kinds = {
        ".jsonl": ("a.jsonl", "a.JSONL", "b.jsonl.gz", "b.jsonl.zst"),
        ".json": ("a.json", "a.json.gz"),
        ".parquet": ("a.parquet",),
        "": ("a", "a.gz", "a.csv.gz", "a.parquet.zst", "jsonl"),
    }
    assert all(sources.kind(name) == kind for kind, names in kinds.items() for name in names)
    assert isinstance(epath.Path("a"), os.PathLike)
