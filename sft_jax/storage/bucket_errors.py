"""What goes wrong with a bucket, as one message about it."""

import contextlib
import errno
import sys
import tempfile
from collections.abc import Iterator

from sft_jax.errors import BadInput
from sft_jax.storage.bucket import PACKAGES, is_remote


@contextlib.contextmanager
def reaching(path: str) -> Iterator[None]:
    """Turns what goes wrong with a bucket into a message about it; nothing for a path of this machine.

    Raises:
      BadInput: no such bucket, no credentials, no permission, no network, or a package is missing.
    """
    if not is_remote(path):
        yield
        return
    try:
        yield
    except ImportError as error:
        package = PACKAGES[path.partition("://")[0]]
        raise BadInput(f"{path}: cannot be opened without {package} ({error}): pip install {package}") from error
    except refusals() as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise BadInput(
                f"{path}: its copy on this machine does not fit into {tempfile.gettempdir()} ({error.strerror}). Name "
                "another directory by TMPDIR."
            ) from error
        said = " ".join(str(error).split()) or type(error).__name__
        raise BadInput(
            f"{path}: cannot be reached: {said}. Check the bucket's name, this machine's credentials and their "
            "permissions."
        ) from error


def refusals() -> tuple[type[Exception], ...]:
    """What the packages that have been loaded raise where a bucket does not answer as it should."""
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
