"""Patches that let Orbax keep checkpoints in object stores other than `gs://`.

Orbax 0.12 supports one store, `gs://`, and treats any other URL as a local path. TensorStore's S3 driver and s3fs offer
everything it needs, so we register S3 as a store and tell Orbax how TensorStore opens it. Orbax also queries the
bucket's settings, for which users with access to its objects often have no permission.

These are Orbax internals; tests/integration/test_bucket.py saves and restores through them.
"""

import functools
import os
import re
from typing import Any

from orbax.checkpoint._src.path import gcs_utils
from orbax.checkpoint._src.serialization import tensorstore_utils

_STORES = ("gs://", "s3://")


def enable_object_stores() -> None:
    """Let Orbax save to and restore from `s3://`, and `gs://` without permission to read the bucket's settings.
    Idempotent."""
    if _STORES == gcs_utils._GCS_PATH_PREFIX:
        return
    kvstore_of_gcs, queries_namespace = gcs_utils.get_kvstore_for_gcs, gcs_utils.is_hierarchical_namespace_enabled

    @functools.wraps(kvstore_of_gcs)
    def kvstore(path: str) -> dict[str, Any]:
        return kvstore_of_s3(path) if path.startswith("s3://") else kvstore_of_gcs(path)

    @functools.wraps(queries_namespace)
    def has_folders(path: Any) -> bool:
        """Whether the bucket has real folders (a hierarchical namespace); then empty ones must be removed."""
        if not str(path).startswith("gs://"):
            return False
        from google.api_core.exceptions import Forbidden

        try:
            return queries_namespace(path)
        except Forbidden:  # roles/storage.objectAdmin and objectUser have no storage.buckets.get
            return False

    gcs_utils.get_kvstore_for_gcs = kvstore
    gcs_utils.is_hierarchical_namespace_enabled = has_folders
    tensorstore_utils._use_gcs_driver = lambda directory: directory.startswith(_STORES)
    tensorstore_utils._normalize_path = _normal
    gcs_utils._GCS_PATH_PREFIX = _STORES


def kvstore_of_s3(path: str) -> dict[str, Any]:
    """TensorStore's key-value store of `s3://bucket/path`.

    TensorStore detects the region of an AWS bucket, so we ignore the environment's region (it may be the machine's).
    Another S3-compatible store is set by AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL, as for botocore, and uses the
    environment's region, if any.
    """
    bucket, key = path.removeprefix("s3://").split("/", 1)
    found: dict[str, Any] = {"driver": "s3", "bucket": bucket, "path": key}
    if endpoint := os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"):
        found["endpoint"] = endpoint
        found["aws_region"] = os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    return found


def _normal(path: str) -> str:
    return re.sub(r"^(gs|s3):/(?!/)", r"\1://", os.path.normpath(path))
