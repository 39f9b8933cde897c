"""Locations in a bucket: what is copied, what is sent back and when, whom a copy belongs to, what goes wrong."""

import time
import urllib.request

import pytest

from sft_jax.errors import BadInput, NonFinite, Preempted
from sft_jax.storage import copies, location
from sft_jax.storage.bucket import open_path
from sft_jax.storage.location import Location, as_location
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
        open_path(f"{RUN}/{name}").write_text(text)

    yield put
    for name in store.listing():
        open_path(f"gs://{BUCKET}/{name}").unlink()


def test_a_directory_of_this_machine_is_its_own_copy(tmp_path):
    here = Location(tmp_path)
    assert here.local() == tmp_path and not here.is_remote and as_location(here) is here
    assert str(here / "a" / "b") == str(tmp_path / "a" / "b")
    here.publish()
    with here.publishing():
        pass
    assert here.kind() == "directory" and not (here / "a").exists()


def test_small_files_are_copied_and_what_a_run_does_not_need_is_not(put, store):
    put("config.json", "{}")
    put("model/tokenizer.json", "t")
    put("model.safetensors", "weights")
    put("checkpoints/8/x", "large")
    put("export/model.safetensors", "large")
    run = Location(f"{RUN}/")
    folder = run.local()
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert found == {"config.json", "model/tokenizer.json"} and folder.name == "a"
    assert (run.local(weights=True) / "model.safetensors").read_text() == "weights"
    assert (run / "config.json").exists() and not (run / "other.json").exists()
    assert Location(f"{RUN}/config.json").local().read_text() == "{}"
    assert [Location(f"{RUN}/{name}").kind() for name in ("model", "config.json", "none")] == ["directory", "file", ""]


def test_what_another_process_has_written_since_is_seen(put, store):
    put("config.json", "{}")
    run = Location(RUN)
    assert not (run.local() / "late.json").exists() and not (run / "late.json").exists()
    url = f"{store.endpoint}/upload/storage/v1/b/{BUCKET}/o?uploadType=media&name=runs/a/late.json"
    urllib.request.urlopen(urllib.request.Request(url, b"late", method="POST")).close()
    assert (run / "late.json").exists()
    assert not (run.local() / "late.json").exists(), "a copy is made once"
    assert (Location(RUN).local() / "late.json").read_text() == "late", "another Location has a copy of its own"
    before = run.local()
    run.discard_copy()
    assert not before.exists() and (run.local() / "late.json").read_text() == "late"


def test_what_is_below_a_location_shares_its_copy_and_is_published_by_itself(put, store):
    put("config.json", "{}")
    put("prepared/x/features.json", "f")
    run = Location(RUN)
    prepared = run / "prepared" / "x"
    assert str(prepared) == f"{RUN}/prepared/x"
    assert prepared.local() == run.local() / "prepared" / "x"
    assert (prepared.local() / "features.json").read_text() == "f"
    (run.local() / "metrics.jsonl").write_text("1\n")
    (prepared.local() / "metadata.json").write_text("m")
    prepared.publish()
    assert "runs/a/prepared/x/metadata.json" in store.listing() and "runs/a/metrics.jsonl" not in store.listing()
    run.publish()
    assert "runs/a/metrics.jsonl" in store.listing()


def test_a_file_is_written_whole_here_and_in_a_bucket(put, store, tmp_path):
    for place, read in (
        (Location(tmp_path) / "a.txt", lambda: (tmp_path / "a.txt").read_text()),
        (Location(RUN) / "a.txt", lambda: store.read("runs/a/a.txt")),
    ):
        place.write_atomic(lambda file: file.write(b"old"))
        with pytest.raises(ZeroDivisionError):
            place.write_atomic(lambda file: (file.write(b"half of the"), 1 / 0))
        assert read() == "old"


def test_what_has_changed_is_sent_once_and_what_describes_the_rest_comes_last(put, store, monkeypatch):
    put("config.json", "old")
    run = Location(RUN)
    folder = run.local()
    sent = []
    file_system = copies.file_system
    monkeypatch.setattr(copies, "file_system", lambda url: sent.append(url.removeprefix(f"{RUN}/")) or file_system(url))
    run.publish()
    assert sent == []
    (folder / "config.json").write_text("new one")
    for name in ("dataset_info.json", "metadata.json", "z.jsonl", "x.partial"):
        (folder / name).write_text(name)
    (folder / "logs").mkdir()
    (folder / "logs" / "process-0.log").write_text("line\n")
    run.publish()
    assert sent == ["logs/process-0.log", "z.jsonl", "metadata.json", "dataset_info.json", "config.json"]
    assert store.read("runs/a/config.json") == "new one"
    with (folder / "z.jsonl").open("a") as file:
        file.write("more")
    run.publish()
    assert sent[5:] == ["z.jsonl"] and store.read("runs/a/z.jsonl") == "z.jsonlmore"


def test_a_file_that_is_appended_to_is_taken_from_the_bucket_first(put, store):
    put("logs/process-3.log", "before\n")
    path = Location(RUN).local_file("logs/process-3.log")
    assert path.read_text() == "before\n"
    absent = Location(RUN).local_file("logs/process-4.log")
    assert absent.parent.is_dir() and not absent.exists()


def test_it_is_published_again_and_again_and_at_the_end_also_of_a_failure(put, store, monkeypatch):
    monkeypatch.setattr(location, "PUBLISH_SECONDS", 0.05)
    run = Location(RUN)
    folder = run.local()
    with pytest.raises(ZeroDivisionError), run.publishing():
        (folder / "metrics.jsonl").write_text("1\n")
        end = time.monotonic() + 20
        while "runs/a/metrics.jsonl" not in store.listing():
            assert time.monotonic() < end
            time.sleep(0.02)
        monkeypatch.setattr(location, "PUBLISH_SECONDS", 1000)
        (folder / "metrics.jsonl").write_text("1\n2\n")
        raise ZeroDivisionError
    assert store.read("runs/a/metrics.jsonl") == "1\n2\n"


def test_a_run_whose_bucket_is_gone_is_to_be_started_again_unless_it_has_failed_by_itself(
    put, store, monkeypatch, caplog
):
    run = Location(RUN)
    folder = run.local()
    (folder / "metrics.jsonl").write_text("1\n")
    monkeypatch.setattr(copies, "file_system", lambda name: (_ for _ in ()).throw(PermissionError("forbidden")))
    with pytest.raises(BadInput, match="cannot be reached: forbidden"):
        run.publish()
    with pytest.raises(Preempted, match=r"not in the bucket yet: .*forbidden"), run.publishing():
        pass
    with pytest.raises(NonFinite, match="step 3"), run.publishing():
        raise NonFinite("step 3")
    assert "some files are not in the bucket yet: " in caplog.text
    monkeypatch.setattr(copies, "file_system", lambda name: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(BadInput, match=r"does not fit into .*TMPDIR"):
        run.publish()
    monkeypatch.undo()


def test_messages_about_a_copy_name_the_bucket(put):
    put("config.json", "[]")
    run, file = Location(RUN), Location(f"{RUN}/config.json")
    with pytest.raises(BadInput, match=rf"^{RUN}/config.json: wrong$"), (run / "model").url_in_errors():
        raise BadInput(f"{run.local()}/config.json: wrong")
    with pytest.raises(BadInput, match=rf"^{RUN}/config.json: wrong$"), file.url_in_errors():
        raise BadInput(f"{file.local()}: wrong")


@pytest.mark.parametrize("name", ["a#1", "a?b", "a*", "a[1]", "../a", "a//b"])
def test_names_that_not_all_programs_read_alike_are_refused(name):
    """A # ends a path for some, a * stands for many files for others: checkpoints would be mixed, or removed."""
    with pytest.raises(BadInput, match="not all programs take for a name"):
        Location(f"gs://{BUCKET}/{name}").check_writable()


def test_a_bucket_that_does_not_exist_is_named(store):
    with pytest.raises(BadInput, match=r"gs://nowhere/x: cannot be reached: .*credentials"):
        Location("gs://nowhere/x").check_writable()
    Location(RUN).check_writable()
    assert store.listing() == {}
    with pytest.raises(BadInput, match=r"gcs2://x: unknown scheme gcs2://. Known: gs://"):
        open_path("gcs2://x")
