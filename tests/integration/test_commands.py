import json
import resource
import signal
import subprocess
import sys

import numpy as np
import pytest


def _jsonl(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.slow
def test_a_run_is_sampled_scored_and_exported_without_its_config(run, process, config_file, tmp_path):
    status, _, err = run("train", config_file, "--train.steps", 3)
    assert status == 0, err
    config_file.unlink()
    workdir, held_out = tmp_path / "run", tmp_path / "held_out.jsonl"
    with held_out.open("a") as file:
        file.write(json.dumps({"messages": [{"role": "user", "content": "Say nothing."}]}) + "\n")

    out = tmp_path / "samples.jsonl"
    options = ("--n", 2, "--temperature", 0.8, "--seed", 3, "--max-new-tokens", 12, "--out", out)
    status, _, err = run("sample", workdir, "--prompts", held_out, *options)
    assert status == 0, err
    samples = _jsonl(out)
    assert len(samples) == 7 and all(len(row["completions"]) == 2 for row in samples)
    eight_devices = [each for row in samples for each in row["completions"]]
    # On one device the same draws.
    status, _, err = process("sample", workdir, "--prompts", held_out, *options)
    assert status == 0, err
    one_device = [each for row in _jsonl(out) for each in row["completions"]]
    for one, other in zip(one_device, eight_devices, strict=True):
        assert one["tokens"] == other["tokens"] and one["text"] == other["text"]
        assert one["logprobs"] == pytest.approx(other["logprobs"], abs=1e-4)  # devices round otherwise

    status, _, err = run("score", workdir, "--data", held_out, "--out", tmp_path / "scores.jsonl")
    assert status == 0, err
    scores = _jsonl(tmp_path / "scores.jsonl")
    assert len(scores) == 7
    assert not any(scores.pop()["weights"])  # the row that asks and is not answered is scored all the same
    for row in scores:
        assert len(row["tokens"]) == len(row["weights"]) == len(row["logprobs"])
        assert row["logprobs"][0] is None and all(p <= 0 for p in row["logprobs"][1:])
        assert any(row["weights"])

    status, printed, err = run("export", workdir, "--out", tmp_path / "export")
    assert status == 0, err
    assert printed.strip() == str(tmp_path / "export")
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} <= {
        path.name for path in (tmp_path / "export").iterdir()
    }
    # What was exported scores as the run does.
    status, _, err = run("score", tmp_path / "export", "--data", held_out, "--out", tmp_path / "again.jsonl")
    assert status == 0, err
    assert (tmp_path / "again.jsonl").read_bytes() == (tmp_path / "scores.jsonl").read_bytes()


@pytest.mark.slow
def test_the_held_out_loss_is_the_score_of_the_held_out_rows(run, config_file, tmp_path, rows_of):
    """Two programs, one number: -sum(weight * logprob) / sum(weight)."""
    status, _, err = run("train", config_file, "--train.steps", 2)
    assert status == 0, err
    status, _, err = run(
        "score", tmp_path / "run", "--data", tmp_path / "held_out.jsonl", "--out", tmp_path / "s.jsonl"
    )
    assert status == 0, err
    pairs = [
        (weight, logprob)
        for row in _jsonl(tmp_path / "s.jsonl")
        for weight, logprob in zip(row["weights"], row["logprobs"], strict=True)
        if weight
    ]
    loss = -sum(weight * logprob for weight, logprob in pairs) / sum(weight for weight, _ in pairs)
    assert abs(loss - rows_of(tmp_path / "run")[-1]["eval/loss"]) < 1e-5


@pytest.mark.slow
def test_two_processes_sample_and_score_like_one(command, process, tiny_model, demonstrations, tmp_path, free_port):
    def both(*arguments):
        processes = [
            command(
                *arguments, "--distributed.cpu-devices", 4, "--distributed.processes", 2, "--distributed.process-id", i,
                "--distributed.coordinator", f"127.0.0.1:{free_port}",
            )
            for i in range(2)
        ]  # fmt: skip
        for one in processes:
            _, err = one.communicate(timeout=240)
            assert one.returncode == 0, err

    held_out = demonstrations.with_name("held_out.jsonl")
    sample = ("sample", tiny_model, "--prompts", held_out, "--max-new-tokens", 8, "--out")
    score = ("score", tiny_model, "--data", held_out, "--out")
    for arguments, name in ((sample, "samples"), (score, "scores")):
        assert process(*arguments, tmp_path / f"{name}-one")[0] == 0
        both(*arguments, tmp_path / f"{name}-two")
    # The same tokens; their log-probabilities up to the rounding of sums over one device or eight.
    for one, two in zip(_jsonl(tmp_path / "samples-one"), _jsonl(tmp_path / "samples-two"), strict=True):
        (mine,), (theirs,) = one.pop("completions"), two.pop("completions")
        assert one == two
        np.testing.assert_allclose(mine.pop("logprobs"), theirs.pop("logprobs"), atol=1e-4)
        assert abs(mine.pop("logprob") - theirs.pop("logprob")) < 1e-3
        assert mine == theirs
    for one, two in zip(_jsonl(tmp_path / "scores-one"), _jsonl(tmp_path / "scores-two"), strict=True):
        assert one["tokens"] == two["tokens"]
        np.testing.assert_allclose(one["logprobs"][1:], two["logprobs"][1:], atol=1e-4)


def test_help_answers_in_under_a_second(process):
    """Of processor time, which does not depend on what else the machine does."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    status, out, _ = process("--help")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert status == 0 and "fine-tune; run it again to resume" in out
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.0


def test_train_help_shows_the_values_of_a_config(run):
    status, out, _ = run("train", "configs/quickstart.py", "--help")
    assert status == 0 and "Peak learning rate [0.0004]" in out


@pytest.mark.parametrize(("process_id", "status"), [(1, 128 + signal.SIGTERM), (7, -signal.SIGTERM)])
def test_sigterm_ends_the_first_process_of_a_container_too(process_id, status):
    """Which the kernel spares every signal that it does not handle."""
    program = f"""
import os, signal
os.getpid = lambda: {process_id}
from sft_jax.cli import main as cli
cli.run_command = lambda arguments: signal.raise_signal(signal.SIGTERM)
cli.main(["train"])
"""
    assert subprocess.run([sys.executable, "-c", program]).returncode == status
