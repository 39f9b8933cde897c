"""Copies of directories in a bucket: what is copied, what is sent back and when, and what becomes of the copies."""

import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from sft_jax.errors import BadInput, NonFinite, Preempted
from sft_jax.storage import bucket
from tests.object_store import BUCKET, google_cloud_storage

RUN = f"gs://{BUCKET}/runs/a"


@pytest.fixture(scope="module")
def store():
    with google_cloud_storage() as store, pytest.MonkeyPatch.context() as patch:
        for name, value in store.environment.items():
            patch.setenv(name, value)
        yield store


@pytest.fixture
def put(store):
    """(name, text): an object below the run, as another process would leave it."""

    def put(name: str, text: str) -> None:
        bucket.open_path(f"{RUN}/{name}").write_text(text)

    yield put
    bucket.forget(RUN)
    for name in store.listing():
        bucket.open_path(f"gs://{BUCKET}/{name}").unlink()


def test_a_directory_of_this_machine_is_its_own_copy(tmp_path):
    assert bucket.local(tmp_path) == tmp_path
    assert bucket.below(tmp_path, "a", "b") == str(tmp_path / "a" / "b")
    bucket.publish(tmp_path)
    with bucket.publishing(tmp_path):
        pass


def test_small_files_are_copied_and_what_a_run_does_not_need_is_not(put, store):
    put("config.json", "{}")
    put("model/tokenizer.json", "t")
    put("model.safetensors", "weights")
    put("checkpoints/8/x", "large")
    put("export/model.safetensors", "large")
    folder = bucket.local(RUN)
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert found == {"config.json", "model/tokenizer.json"} and folder.name == "a"
    assert (bucket.local(RUN, weights=True) / "model.safetensors").read_text() == "weights"
    assert bucket.local(f"{RUN}/config.json").read_text() == "{}"
    assert bucket.exists(f"{RUN}/config.json") and not bucket.exists(f"{RUN}/other.json")


def test_what_another_process_has_written_since_is_seen(put, store):
    put("config.json", "{}")
    assert not (bucket.local(RUN) / "late.json").exists() and not bucket.exists(f"{RUN}/late.json")
    url = f"{store.endpoint}/upload/storage/v1/b/{BUCKET}/o?uploadType=media&name=runs/a/late.json"
    urllib.request.urlopen(urllib.request.Request(url, b"late", method="POST")).close()
    assert bucket.exists(f"{RUN}/late.json")
    bucket.forget(RUN)
    assert (bucket.local(RUN) / "late.json").read_text() == "late"


def test_what_has_changed_is_sent_once_and_what_describes_the_rest_comes_last(put, store, monkeypatch):
    put("config.json", "old")
    folder = bucket.local(RUN)
    sent = []
    below = bucket.below
    monkeypatch.setattr(bucket, "below", lambda path, name: sent.append(name) or below(path, name))
    bucket.publish(RUN)
    assert sent == []
    (folder / "config.json").write_text("new one")
    for name in ("dataset_info.json", "metadata.json", "z.jsonl", "x.partial"):
        (folder / name).write_text(name)
    (folder / "logs").mkdir()
    (folder / "logs" / "process-0.log").write_text("line\n")
    bucket.publish(RUN)
    assert sent == ["logs/process-0.log", "z.jsonl", "metadata.json", "dataset_info.json", "config.json"]
    assert store.read("runs/a/config.json") == "new one"
    with (folder / "z.jsonl").open("a") as file:
        file.write("more")
    bucket.publish(RUN)
    assert sent[5:] == ["z.jsonl"] and store.read("runs/a/z.jsonl") == "z.jsonlmore"


def test_a_file_that_is_appended_to_is_taken_from_the_bucket_first(put, store):
    put("logs/process-3.log", "before\n")
    path = bucket.local_file(RUN, "logs/process-3.log")
    assert path.read_text() == "before\n"
    assert not bucket.local_file(RUN, "logs/process-4.log").exists()


def test_it_is_published_again_and_again_and_at_the_end_also_of_a_failure(put, store, monkeypatch):
    monkeypatch.setattr(bucket, "PUBLISH_SECONDS", 0.05)
    folder = bucket.local(RUN)
    with pytest.raises(ZeroDivisionError), bucket.publishing(RUN):
        (folder / "metrics.jsonl").write_text("1\n")
        end = time.monotonic() + 20
        while "runs/a/metrics.jsonl" not in store.listing():
            assert time.monotonic() < end
            time.sleep(0.02)
        monkeypatch.setattr(bucket, "PUBLISH_SECONDS", 1000)
        (folder / "metrics.jsonl").write_text("1\n2\n")
        raise ZeroDivisionError
    assert store.read("runs/a/metrics.jsonl") == "1\n2\n"


def test_a_run_whose_bucket_is_gone_is_to_be_started_again_unless_it_has_failed_by_itself(
    put, store, monkeypatch, capsys
):
    folder = bucket.local(RUN)
    (folder / "metrics.jsonl").write_text("1\n")
    monkeypatch.setattr(bucket, "file_system", lambda name: (_ for _ in ()).throw(PermissionError("forbidden")))
    with pytest.raises(BadInput, match="cannot be reached: forbidden"):
        bucket.publish(RUN)
    with pytest.raises(Preempted, match=r"not all in the bucket: .*forbidden"), bucket.publishing(RUN):
        pass
    with pytest.raises(NonFinite, match="step 3"), bucket.publishing(RUN):
        raise NonFinite("step 3")
    assert "not all is in the bucket yet: " in capsys.readouterr().err
    monkeypatch.setattr(bucket, "file_system", lambda name: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(BadInput, match=r"does not fit into .*TMPDIR"):
        bucket.publish(RUN)
    monkeypatch.undo()


def test_messages_about_a_copy_name_the_bucket(put):
    put("config.json", "[]")
    with pytest.raises(BadInput, match=rf"^{RUN}/config.json: wrong$"), bucket.naming(RUN):
        raise BadInput(f"{bucket.local(RUN)}/config.json: wrong")


@pytest.mark.parametrize("name", ["a#1", "a?b", "a*", "a[1]", "../a", "a//b"])
def test_names_that_not_all_programs_read_alike_are_refused(name):
    """A # ends a path for some, a * stands for many files for others: checkpoints would be mixed, or removed."""
    with pytest.raises(BadInput, match="not all programs take for a name"):
        bucket.check_writable(f"gs://{BUCKET}/{name}")


def test_a_bucket_that_does_not_exist_is_named(store):
    with pytest.raises(BadInput, match=r"gs://nowhere/x: cannot be reached: .*credentials"):
        bucket.check_writable("gs://nowhere/x")
    bucket.check_writable(RUN)
    assert store.listing() == {}
    with pytest.raises(BadInput, match=r"gcs2://x: unknown scheme gcs2://. Known: gs://"):
        bucket.open_path("gcs2://x")


def test_copies_of_a_killed_process_are_removed_by_the_next_and_those_of_a_living_one_are_not(tmp_path):
    code = (
        "import os, time; from sft_jax.storage import bucket; bucket._SECONDS_TO_LOCK = {}; "
        "print(bucket._home(), flush=True); {}"
    )

    def start(then: str, seconds: float = 0) -> tuple[subprocess.Popen, Path]:
        process = subprocess.Popen(
            [sys.executable, "-c", code.format(seconds, then)],
            env={**os.environ, "TMPDIR": str(tmp_path)},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout
        return process, Path(process.stdout.readline().strip())

    living, of_living = start("time.sleep(100)")
    killed, of_killed = start("os._exit(1)")
    killed.communicate()
    assert of_killed.is_dir()
    for seconds, kept in ((1000, True), (0, False)):
        process, own = start("pass", seconds)
        process.communicate()
        assert of_living.is_dir() and of_killed.is_dir() is kept and not own.exists()
    living.kill()
    living.communicate()
