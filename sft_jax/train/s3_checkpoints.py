"""Orbax with checkpoints at `s3://bucket/path`.

Orbax 0.12 knows one object store, `gs://`; it takes any other URL for a path of this machine. All that it asks of the
store, TensorStore's S3 driver and s3fs do as well: so it is told that S3 is such a store, and how TensorStore opens it.
These are internals of Orbax; tests/integration/test_bucket.py saves and restores through them.
"""

import os
import re
from typing import Any

from orbax.checkpoint._src.path import gcs_utils
from orbax.checkpoint._src.serialization import tensorstore_utils

_STORES = ("gs://", "s3://")


def teach_orbax_s3() -> None:
    """Let Orbax save to and restore from `s3://`; calling it again changes nothing."""
    if _STORES == gcs_utils._GCS_PATH_PREFIX:
        return
    kvstore_of_gcs, has_folders = gcs_utils.get_kvstore_for_gcs, gcs_utils.is_hierarchical_namespace_enabled

    def kvstore(path: str) -> dict[str, Any]:
        return kvstore_of_s3(path) if path.startswith("s3://") else kvstore_of_gcs(path)

    gcs_utils.get_kvstore_for_gcs = kvstore
    gcs_utils.is_hierarchical_namespace_enabled = lambda path: not str(path).startswith("s3://") and has_folders(path)
    tensorstore_utils._use_gcs_driver = lambda directory: directory.startswith(_STORES)
    tensorstore_utils._normalize_path = _normal
    gcs_utils._GCS_PATH_PREFIX = _STORES


def kvstore_of_s3(path: str) -> dict[str, Any]:
    """TensorStore's key-value store of `s3://bucket/path`, with the endpoint and region that botocore would take."""
    bucket, key = path.removeprefix("s3://").split("/", 1)
    found: dict[str, Any] = {"driver": "s3", "bucket": bucket, "path": key}
    if endpoint := os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"):
        found["endpoint"] = endpoint
    if region := os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"):
        found["aws_region"] = region
    return found


def _normal(path: str) -> str:
    return re.sub(r"^(gs|s3):/(?!/)", r"\1://", os.path.normpath(path))
