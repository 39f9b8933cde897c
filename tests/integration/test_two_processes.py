"""Two processes with four devices each, as one run: they agree, do what one does, and read their own part alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.integration.conftest import ROOT
from tests.integration.use_library import use


@pytest.fixture
def both(command, free_port):
    """(arguments, options of each process) -> (statuses, stderrs) of two processes of four devices."""

    def run(*arguments, first=(), second=(), module="sft_jax", devices=4):
        started = [
            command(
                *arguments, "--distributed.cpu-devices", devices, "--distributed.processes", 2,
                "--distributed.process-id", i, "--distributed.coordinator", f"127.0.0.1:{free_port}", *own,
                module=module,
            )
            for i, own in enumerate((first, second))
        ]  # fmt: skip
        ends = [process.communicate(timeout=200) for process in started]
        return [process.returncode for process in started], [err for _, err in ends]

    return run


def _refused(result, words, tmp_path):
    statuses, errors = result
    assert statuses == [2, 2], errors
    for err in errors:
        assert err.count("error: ") == 1 and "Traceback" not in err, err
        for word in words:
            assert word in err, (word, err)
    assert not (tmp_path / "run" / "metrics.jsonl").exists() and not (tmp_path / "run" / "config.json").exists()


def test_different_options_are_refused_on_every_process_with_the_fields(both, config_file, tmp_path):
    """Also where one would wait for data that the other never prepares."""
    result = both(
        "train", config_file, second=("--optimizer.learning-rate", 1e-4, "--data.sequence-length", 64),
    )  # fmt: skip
    _refused(
        result,
        [
            "optimizer.learning_rate: 0.001 on process 0, 0.0001 on process 1",
            "data.sequence_length: 128 on process 0, 64 on process 1",
            "same CONFIG and options",
        ],
        tmp_path,
    )


@pytest.mark.slow
def test_what_one_process_refuses_all_refuse(both, config_file, tmp_path):
    for options, words in (
        (("--mesh.fsdp", 3), ["the mesh (fsdp 3) needs 3 devices, found 8"]),
        (("--mesh.tensor", 8, "--mesh.fsdp", 1), ["kv_heads 2 is not divisible by tensor = 8", "nearest mesh"]),
        (("--data.train", tmp_path / "nowhere.jsonl"), ["nowhere.jsonl", "no such file"]),
    ):
        _refused(both("train", config_file, *options), words, tmp_path)


@pytest.mark.slow
def test_the_library_in_two_processes_does_what_it_does_in_one(config_file, tmp_path, free_port):
    """Also where one of them sees an older checkpoint than there is: process 0 says which one is restored."""
    started = [
        subprocess.Popen(
            [
                sys.executable, "-m", "tests.integration.use_library",
                config_file, tmp_path / "two", tmp_path / "two-out", "2", str(process), str(free_port),
            ],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for process in range(2)
    ]  # fmt: skip
    said = [process.communicate(timeout=250) for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    first, second = (json.loads(out.splitlines()[-1]) for out, _ in said)
    one = use(str(config_file), str(tmp_path / "one"), str(tmp_path / "one-out"))
    assert first == second and first["again_at"] == 4
    np.testing.assert_allclose(first.pop("losses"), one.pop("losses"), rtol=2e-6)
    np.testing.assert_allclose(first.pop("held_out"), one.pop("held_out"), rtol=2e-6)
    assert first == one


@pytest.mark.slow
def test_data_that_differs_between_the_processes_is_refused(both, config_file, tmp_path, run):
    """As it is where each host has a prepared dataset of its own, and one is older."""
    for place, text in (("a", "first"), ("b", "second")):
        row = {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": text}]}
        (tmp_path / f"{place}.jsonl").write_text((json.dumps(row) + "\n") * 30)
        status, _, err = run(
            "data", "prepare", config_file, "--data.train", tmp_path / f"{place}.jsonl", "--data.eval",
            "--train.eval-every", 0, "--out", tmp_path / place / "set",
        )  # fmt: skip
        assert status == 0, err
    result = both(
        "train", config_file, "--data.train", tmp_path / "local" / "set", "--data.eval", "--train.eval-every", 0,
        module="tests.integration.own_files",
    )  # fmt: skip
    _refused(result, ["the processes have different data", "data: ", "on process 0", "on process 1"], tmp_path)


@pytest.mark.slow
def test_two_processes_sample_score_and_export_like_one(both, run, tiny_model, demonstrations, tmp_path):
    two = tmp_path / "two"
    two.mkdir()
    prompts, layout = ("--prompts", demonstrations.with_name("held_out.jsonl")), ("--mesh.fsdp", 4, "--mesh.tensor", 2)
    commands = {
        "greedy.jsonl": ("sample", tiny_model, *prompts, "--max-new-tokens", 8, "--n", 2),
        "drawn.jsonl": ("sample", tiny_model, *prompts, "--max-new-tokens", 8, "--temperature", 0.7, "--seed", 3),
        "scores.jsonl": ("score", tiny_model, "--data", demonstrations.with_name("held_out.jsonl")),
        "exported": ("export", tiny_model),
    }
    for name, arguments in commands.items():
        status, _, err = run(*arguments, *layout, "--out", tmp_path / name)
        assert status == 0, err
        statuses, errors = both(*arguments, *layout, "--out", two / name)
        assert statuses == [0, 0], errors
    for name in ("greedy.jsonl", "drawn.jsonl"):
        assert (two / name).read_text() == (tmp_path / name).read_text(), name
    rows, expected = (
        [json.loads(line) for line in (place / "scores.jsonl").read_text().splitlines()] for place in (two, tmp_path)
    )
    for ours, theirs in zip(rows, expected, strict=True):
        assert ours["tokens"] == theirs["tokens"]
        np.testing.assert_allclose(ours["logprobs"][1:], theirs["logprobs"][1:], atol=1e-5)
    tensors = load_file(two / "exported" / "model.safetensors")
    for name, tensor in load_file(tmp_path / "exported" / "model.safetensors").items():
        np.testing.assert_array_equal(tensors[name], tensor, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layout", "own"),
    [
        (("--mesh.fsdp", 8), [[[0, 4]], [[4, 8]]]),
        (("--mesh.data", 2, "--mesh.fsdp", 2, "--mesh.tensor", 2), [[[0, 4]], [[4, 8]]]),
        # Four devices share each row, all of one process.
        (("--mesh.fsdp", 2, "--mesh.context", 4), [[[0, 4]], [[4, 8]]]),
        # All eight share each row: both processes read it, and each puts its half of it on its devices.
        (("--mesh.fsdp", 1, "--mesh.context", 8), [[[0, 8]], [[0, 8]]]),
    ],
)
def test_each_process_reads_the_rows_of_its_devices_alone(both, config_file, tmp_path, layout, own):
    os.environ["ROWS_READ"] = str(tmp_path / "rows")
    try:
        statuses, errors = both(
            "train", config_file, "--train.steps", 1, "--train.eval-every", 0, *layout,
            module="tests.integration.counted_rows",
        )  # fmt: skip
    finally:
        del os.environ["ROWS_READ"]
    assert statuses == [0, 0], errors
    read = [json.loads(Path(f"{tmp_path}/rows{i}.json").read_text()) for i in range(2)]
    assert read == own
