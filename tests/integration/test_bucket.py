"""Runs whose workdir, model and data lie in a bucket, against emulators of Google Cloud Storage and S3.

Each command has a process of its own: the packages that open buckets keep what they once read in the environment.
"""

import json
import signal
import time

import pytest

from tests.object_store import MOTO, google_cloud_storage, s3

EXACT = ("step", "loss", "grad_norm", "learning_rate", "tokens", "eval/loss")


@pytest.fixture(scope="module")
def google():
    with google_cloud_storage() as store:
        yield store


@pytest.fixture(scope="module")
def amazon():
    if not MOTO.exists():
        pytest.skip("make slow brings moto")
    with s3() as store:
        yield store


@pytest.fixture(params=["google", pytest.param("amazon", marks=pytest.mark.slow)])
def store(request, monkeypatch):
    """An object store that the commands of a test talk to."""
    store = request.getfixturevalue(request.param)
    for name, value in store.environment.items():
        monkeypatch.setenv(name, value)
    return store


def _rows(store, run):
    """metrics.jsonl of a run, without times."""
    rows = map(json.loads, store.read(f"{run}/metrics.jsonl").splitlines())
    return [{name: row[name] for name in EXACT if name in row} for row in rows]


@pytest.mark.slow
def test_a_run_in_a_bucket_is_the_run_in_a_directory_and_its_workdir_is_a_model(
    process, config_file, tmp_path, rows_of, store
):
    status, _, err = process("train", config_file, "--workdir", tmp_path / "here")
    assert status == 0, err
    url = f"{store.url}/a/whole"
    status, _, err = process("train", config_file, "--workdir", url, "--train.tensorboard", True)
    assert status == 0 and f"done: {url}" in err, err
    assert _rows(store, "a/whole") == [
        {name: row[name] for name in EXACT if name in row} for row in rows_of(tmp_path / "here")
    ]
    names = set(store.listing())
    kept = {"config.json", "record.json", "report.html", "handoff.json", "metrics.jsonl", "model/tokenizer.json"}
    assert {f"a/whole/{name}" for name in kept | {"logs/process-0.log"}} <= names
    assert any(name.startswith("a/whole/tensorboard/events") for name in names)
    assert any(name.startswith("a/whole/prepared/") and name.endswith("dataset_info.json") for name in names)
    steps = {name.split("/")[3] for name in names if name.startswith("a/whole/checkpoints/")}
    assert {"8", "12"} <= steps and not any(name.endswith((".partial", ".tmp")) for name in names)
    assert "<title>whole</title>" in store.read("a/whole/report.html")
    assert not (tmp_path / "gs:").exists()

    status, _, err = process("train", config_file, "--workdir", url, "--train.tensorboard", True)
    assert status == 0 and "already at step 12 of 12" in err, err

    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"prompt": "2 + 2 =", "completion": " 4"}) + "\n")
    outs = {}
    for where in (tmp_path / "here", url):
        out = tmp_path / f"{len(outs)}.jsonl"
        status, _, err = process("score", where, "--data", prompts, "--out", out)
        assert status == 0, err
        outs[str(where)] = out.read_text()
    assert outs[str(tmp_path / "here")] == outs[url]
    status, _, err = process("score", url, "--data", prompts, "--out", f"{url}-scores/scores.jsonl")
    assert status == 0, err
    assert store.read("a/whole-scores/scores.jsonl") == outs[url]


@pytest.mark.slow
def test_a_killed_and_a_preempted_run_in_a_bucket_lose_no_row(command, process, config_file, store):
    options = ("train", config_file, "--train.steps", 60, "--train.save-every", 10)
    status, _, err = process(*options, "--workdir", f"{store.url}/k/whole")
    assert status == 0, err
    killed = (*options, "--workdir", f"{store.url}/k/cut")

    def saved(least):
        steps = {name.split("/")[3] for name in store.listing() if name.startswith("k/cut/checkpoints/")}
        return any(step.isdigit() and int(step) >= least for step in steps)

    for least, how, status in ((10, signal.SIGKILL, -signal.SIGKILL), (20, signal.SIGTERM, 42)):
        started = command(*killed)
        end = time.monotonic() + 120
        while not saved(least):
            assert started.poll() is None and time.monotonic() < end, started.communicate()
            time.sleep(0.02)
        started.send_signal(how)
        _, err = started.communicate(timeout=60)
        assert started.returncode == status, err
    status, _, err = process(*killed)
    assert status == 0 and "continuing" in err, err
    assert _rows(store, "k/cut") == _rows(store, "k/whole")
    log = store.read("k/cut/logs/process-0.log")
    assert log.count("process 0 of 1 on") == 3 and "Preempted: stopped after step" in log


@pytest.mark.slow
def test_two_processes_share_a_workdir_in_a_bucket(command, config_file, free_port, store):
    """Each has its own copy of the small files; one prepares the data, and each writes its log."""
    url = f"{store.url}/t/two"
    for cut_off in (False, True):
        processes = [
            command(
                "train", config_file, "--workdir", url, "--mesh.fsdp", 4, "--distributed.cpu-devices", 2,
                "--distributed.processes", 2, "--distributed.process-id", i,
                "--distributed.coordinator", f"127.0.0.1:{free_port}",
                *(("--train.keep-last", 1) if cut_off else ()),
            )
            for i in range(2)
        ]  # fmt: skip
        ends = [process.communicate(timeout=200)[1] for process in processes]
        assert [process.returncode for process in processes] == [0, 0], ends
    assert "already at step 12 of 12" in ends[0]
    assert [row["step"] for row in _rows(store, "t/two") if "loss" in row] == list(range(1, 13))
    out = f"{store.url}/t/exported"
    exporting = [
        command(
            "export", url, "--out", out, "--mesh.fsdp", 4, "--distributed.cpu-devices", 2,
            "--distributed.processes", 2, "--distributed.process-id", i,
            "--distributed.coordinator", f"127.0.0.1:{free_port}",
        )
        for i in range(2)
    ]  # fmt: skip
    ends = [process.communicate(timeout=200)[1] for process in exporting]
    assert [process.returncode for process in exporting] == [0, 0], ends
    assert {"t/exported/model.safetensors", "t/exported/handoff.json"} <= set(store.listing())
    for process in range(2):
        assert f"process {process} of 2 on" in store.read(f"t/two/logs/process-{process}.log")


@pytest.mark.slow
def test_prepared_data_and_exports_go_to_a_bucket_and_are_trained_from_there(process, config_file, tmp_path, store):
    prepared = f"{store.url}/p/prepared"
    for words in (("examples",), ("prepared already",)):
        status, out, err = process("data", "prepare", config_file, "--out", prepared)
        assert status == 0 and all(word in out + err for word in words), err
    status, _, err = process("data", "prepare", config_file, "--out", prepared, "--data.sequence-length", 64)
    assert status == 2 and f"{prepared} holds another dataset" in err

    model = f"{store.url}/p/model"
    status, _, err = process("export", _model_of(config_file), "--out", model)
    assert status == 0, err
    assert "p/model/model.safetensors" in store.listing()
    status, _, err = process("export", _model_of(config_file), "--out", model)
    assert status == 2 and "not empty" in err, err

    status, _, err = process(
        "train", config_file, "--workdir", tmp_path / "there", "--model.path", model,
        "--data.train", prepared, "--data.eval", f"{prepared}:eval",
    )  # fmt: skip
    assert status == 0, err
    status, _, err = process("train", config_file, "--workdir", tmp_path / "here")
    assert status == 0, err
    read_both = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("there", "here")]
    losses = [[json.loads(line).get("loss") for line in lines] for lines in read_both]
    assert losses[0] == losses[1]


def test_what_is_wrong_with_a_bucket_is_said_in_one_message(process, config_file, store):
    for options, words in (
        (("--workdir", f"{store.scheme}://nowhere/run"), ["://nowhere/run", "cannot be reached", "credentials"]),
        (("--model.path", f"{store.url}/no/model"), [f"{store.url}/no/model"]),
        (("--data.train", f"{store.url}/no.jsonl"), [f"{store.url}/no.jsonl", "no such file"]),
    ):
        status, _, err = process("train", config_file, *options)
        assert status == 2 and err.count("error: ") == 1 and "Traceback" not in err, err
        assert all(word in err for word in words), (words, err)


def _model_of(config_file):
    from sft_jax.config import load_config

    return load_config(config_file).model.path
