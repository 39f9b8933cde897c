"""URLs of object stores (`gs://bucket/path`), and the packages that open them."""

from pathlib import Path
from typing import Any

from sft_jax.errors import BadInput

PACKAGES = {"gs": "gcsfs", "s3": "s3fs", "az": "adlfs"}
"""URL scheme -> the package that etils.epath needs to open it."""


def is_remote(path: str | Path) -> bool:
    """Whether `path` names something in an object store."""
    return str(path).partition("://")[0] in PACKAGES and "://" in str(path)


def open_path(name: str) -> Any:
    """The epath of a file or directory, on this machine or in a bucket.

    Raises:
      BadInput: an unknown scheme.
    """
    from etils import epath

    scheme = name.partition("://")[0] if "://" in name else ""
    if scheme:
        import fsspec.config

        # Other processes write too, so a cached listing may be stale.
        for known in (*PACKAGES, "gcs"):
            fsspec.config.conf.setdefault(known, {}).setdefault("use_listings_cache", False)
    try:
        return epath.Path(name)
    except KeyError as error:
        known = ", ".join(f"{known}://" for known in (*PACKAGES, "tfds", "hf"))
        raise BadInput(f"{name}: unknown scheme {scheme}://. Known: {known}, and local paths") from error


def file_system(url: str) -> tuple[Any, str]:
    """fsspec's file system of a URL, and the path in it. It copies whole files, much faster than block by block."""
    import fsspec.core

    open_path(url)  # first, since it turns off the listings cache
    return fsspec.core.url_to_fs(url)


def kind_of(path: str) -> str:
    """`file`, `directory`, or "" if nothing exists, locally or in a bucket. Errors of the bucket are raised."""
    try:
        return "directory" if open_path(path).stat().is_directory else "file"
    except (FileNotFoundError, NotADirectoryError):
        return ""
