"""Turns the exceptions of object-store packages into one clear BadInput."""

import contextlib
import errno
import sys
import tempfile
from collections.abc import Iterator

from sft_jax.errors import BadInput
from sft_jax.storage.bucket import PACKAGES, is_remote


@contextlib.contextmanager
def explain_bucket_errors(path: str) -> Iterator[None]:
    """Convert bucket errors to BadInput; does nothing for a local path.

    Raises:
      BadInput: no such bucket, no credentials, no permission, no network, or a missing package.
    """
    if not is_remote(path):
        yield
        return
    try:
        yield
    except ImportError as error:
        package = PACKAGES[path.partition("://")[0]]
        raise BadInput(f"{path}: cannot be opened without {package} ({error}): pip install {package}") from error
    except bucket_exceptions() as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise BadInput(
                f"{path}: its local copy does not fit into {tempfile.gettempdir()} ({error.strerror}). Set TMPDIR to "
                "a directory with more space."
            ) from error
        said = " ".join(str(error).split()) or type(error).__name__
        raise BadInput(
            f"{path}: cannot be reached: {said}. Check the bucket's name, this machine's credentials and their "
            "permissions."
        ) from error


def bucket_exceptions() -> tuple[type[Exception], ...]:
    """The exceptions that the imported object-store packages raise when a request fails."""
    named = (
        ("gcsfs.retry", "HttpError"),
        ("gcsfs.retry", "ChecksumError"),
        ("gcsfs.retry", "NonRetryableError"),
        ("google.auth.exceptions", "GoogleAuthError"),
        ("google.api_core.exceptions", "GoogleAPIError"),
        ("aiohttp", "ClientError"),
        ("botocore.exceptions", "BotoCoreError"),
        ("botocore.exceptions", "ClientError"),
    )
    return (OSError, *(getattr(sys.modules[module], name) for module, name in named if module in sys.modules))
