"""What Orbax must be told to keep checkpoints in an object store.

Orbax 0.12 knows one store, `gs://`; it takes any other URL for a path of this machine. All that it asks of the store,
TensorStore's S3 driver and s3fs do as well: so it is told that S3 is such a store, and how TensorStore opens it. And it
asks Google about the bucket itself, which those who may use its objects often may not see.

These are internals of Orbax; tests/integration/test_bucket.py saves and restores through them.
"""

import functools
import os
import re
from typing import Any

from orbax.checkpoint._src.path import gcs_utils
from orbax.checkpoint._src.serialization import tensorstore_utils

_STORES = ("gs://", "s3://")


def teach_orbax() -> None:
    """Let Orbax save to and restore from `s3://`, and `gs://` without the right to see the bucket's settings; calling
    it again changes nothing."""
    if _STORES == gcs_utils._GCS_PATH_PREFIX:
        return
    kvstore_of_gcs, asks_for_folders = gcs_utils.get_kvstore_for_gcs, gcs_utils.is_hierarchical_namespace_enabled

    @functools.wraps(kvstore_of_gcs)
    def kvstore(path: str) -> dict[str, Any]:
        return kvstore_of_s3(path) if path.startswith("s3://") else kvstore_of_gcs(path)

    @functools.wraps(asks_for_folders)
    def has_folders(path: Any) -> bool:
        """Whether the bucket keeps folders of its own (a hierarchical namespace): then empty ones must be removed."""
        if not str(path).startswith("gs://"):
            return False
        from google.api_core.exceptions import Forbidden

        try:
            return asks_for_folders(path)
        except Forbidden:  # roles/storage.objectAdmin and objectUser have no storage.buckets.get
            return False

    gcs_utils.get_kvstore_for_gcs = kvstore
    gcs_utils.is_hierarchical_namespace_enabled = has_folders
    tensorstore_utils._use_gcs_driver = lambda directory: directory.startswith(_STORES)
    tensorstore_utils._normalize_path = _normal
    gcs_utils._GCS_PATH_PREFIX = _STORES


def kvstore_of_s3(path: str) -> dict[str, Any]:
    """TensorStore's key-value store of `s3://bucket/path`.

    TensorStore finds the region of an AWS bucket by itself: the environment's may be that of the machine. Another store
    with S3's interface is named by AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL, as for botocore, and has the region of the
    environment, if any.
    """
    bucket, key = path.removeprefix("s3://").split("/", 1)
    found: dict[str, Any] = {"driver": "s3", "bucket": bucket, "path": key}
    if endpoint := os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"):
        found["endpoint"] = endpoint
        found["aws_region"] = os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    return found


def _normal(path: str) -> str:
    return re.sub(r"^(gs|s3):/(?!/)", r"\1://", os.path.normpath(path))
