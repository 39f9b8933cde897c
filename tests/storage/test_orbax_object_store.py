"""What Orbax is told about object stores; tests/integration/test_bucket.py saves and restores."""

from etils import epath
from google.api_core.exceptions import Forbidden
from orbax.checkpoint._src.path import gcs_utils
from orbax.checkpoint._src.serialization import tensorstore_utils

from sft_jax.storage.orbax_object_store import enable_object_stores, kvstore_of_s3


def test_a_bucket_whose_settings_may_not_be_seen_is_used_without_them(monkeypatch):
    """As by roles/storage.objectAdmin, which has every right to the objects and none to the bucket."""
    enable_object_stores()
    asked = []

    def get_bucket(name):
        asked.append(name)
        raise Forbidden("storage.buckets.get")

    monkeypatch.setattr(gcs_utils, "get_bucket", get_bucket)
    assert not gcs_utils.is_hierarchical_namespace_enabled(epath.Path("gs://bucket/run/checkpoints"))
    assert not gcs_utils.is_hierarchical_namespace_enabled(epath.Path("s3://other/run/checkpoints"))
    assert asked == ["bucket"]


def test_each_store_is_opened_by_its_own_driver_and_a_directory_by_none(monkeypatch):
    for _ in range(2):
        enable_object_stores()
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    drivers = {}
    for directory in ("gs://b/run/8", "s3://b/run/8/", "/b/run/8"):
        drivers[directory] = tensorstore_utils.build_kvstore_tspec(directory, use_ocdbt=False)
    assert drivers["gs://b/run/8"] == {"driver": "gcs", "bucket": "b", "path": "run/8"}
    assert drivers["s3://b/run/8/"] == {"driver": "s3", "bucket": "b", "path": "run/8"}
    assert drivers["/b/run/8"]["driver"] == "file"


def test_the_region_of_the_machine_is_not_taken_for_that_of_a_bucket_of_aws(monkeypatch):
    monkeypatch.setenv("AWS_REGION", "eu-north-1")
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
    assert "aws_region" not in kvstore_of_s3("s3://b/run")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "https://elsewhere.example")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "north")
    found = kvstore_of_s3("s3://b/run")
    assert (found["endpoint"], found["aws_region"]) == ("https://elsewhere.example", "north")
