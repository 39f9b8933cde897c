import json
import shutil
import signal
import time

import numpy as np
import pytest

EXACT = ("step", "loss", "accuracy", "entropy", "grad_norm", "learning_rate", "tokens", "target_tokens")


def _exact(rows):
    """What must not depend on interruptions: everything but times, and the held-out rows whole."""
    return [row if "eval/loss" in row else {name: row[name] for name in EXACT} for row in rows]


def _wait_for(condition, process, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_run_leaves_everything_and_learns(run, config_file, tmp_path, rows_of):
    status, _, err = run("train", config_file)
    assert status == 0, err
    workdir = tmp_path / "run"
    stages = ("sft-jax 0.1.0: ", "reading the data ...", "model: ", "loading the weights ...", "compiling the training")
    places = [err.find(f"\n{stage}") for stage in stages[1:]]
    assert err.startswith(stages[0]) and -1 not in places and places == sorted(places), err
    assert f"M parameters, float32; devices: 8 x cpu (fsdp 8); workdir: {workdir}" in err
    rows = rows_of(workdir)
    losses = [row["loss"] for row in rows if "loss" in row]
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, 13))
    assert [row["step"] for row in rows if "eval/loss" in row] == [6, 12]
    assert losses[-1] < losses[0]
    assert {"config.json", "metrics.jsonl", "checkpoints", "report.html", "model"} <= {
        p.name for p in workdir.iterdir()
    }
    assert sorted(int(p.name) for p in (workdir / "checkpoints").iterdir()) == [8, 12]
    log = (workdir / "logs" / "process-0.log").read_text()
    assert "process 0 of 1 on " in log and "step 12/12  loss" in log and log.endswith("INFO sft_jax: done\n")
    resolved = json.loads((workdir / "config.json").read_text())
    assert resolved["train"]["steps"] == 12 and resolved["data"]["target_capacity"] > 0

    status, _, err = run("train", config_file)
    assert status == 0 and "already at step 12 of 12" in err
    assert rows_of(workdir) == rows

    # The resolved config alone is enough to go on, without the file it came from.
    config_file.unlink()
    status, _, err = run("train", workdir / "config.json", "--train.keep-last", 1)
    assert status == 0, err


@pytest.fixture
def uninterrupted(process, config_file, tmp_path, rows_of):
    """The rows of a run of 60 steps that nothing disturbed."""
    status, _, err = process("train", config_file, "--workdir", tmp_path / "whole", "--train.steps", 60)
    assert status == 0, err
    return rows_of(tmp_path / "whole")


def test_a_killed_and_a_preempted_run_continue_bit_identically(
    command, process, config_file, tmp_path, rows_of, uninterrupted
):
    workdir = tmp_path / "run"
    # SIGTERM and Ctrl-C save and exit 42; then SIGKILL; then the rest. No row differs from the undisturbed run.
    options = ("train", config_file, "--train.steps", 60)
    saved = 0
    for number, least in ((signal.SIGTERM, 3), (signal.SIGINT, 12)):
        started = command(*options, "--train.save-every", 0)
        at_least = max(least, saved + 1)
        _wait_for(lambda n=at_least: (workdir / "metrics.jsonl").is_file() and len(rows_of(workdir)) >= n, started)
        started.send_signal(number)
        _, err = started.communicate(timeout=60)
        assert started.returncode == 42 and "stopping after this step, with a checkpoint" in err, err
        assert "run the same command to continue" in err
        saved = max(int(path.name) for path in (workdir / "checkpoints").iterdir())
        assert saved == rows_of(workdir)[-1]["step"] < 40

    started = command(*options, "--train.save-every", 2)
    _wait_for(
        lambda: any(int(p.name) >= saved + 2 for p in (workdir / "checkpoints").glob("[0-9]*") if p.name.isdigit()),
        started,
    )
    started.send_signal(signal.SIGKILL)
    started.wait()

    status, _, err = process(*options)
    assert status == 0 and "continuing" in err
    assert _exact(rows_of(workdir)) == _exact(uninterrupted)


@pytest.mark.slow
def test_an_evaluation_that_a_stop_prevented_is_made_on_resume(run, config_file, tmp_path, rows_of):
    options = ("--train.eval-every", 4)
    status, _, err = run("train", config_file, *options)
    assert status == 0, err
    whole = rows_of(tmp_path / "run")
    # As SIGTERM leaves it when it comes in step 8: saved, and not evaluated.
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "12")
    kept = [row for row in whole if row["step"] <= 8 and (row["step"] < 8 or "loss" in row)]
    (tmp_path / "run" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    status, _, err = run("train", config_file, *options)
    assert status == 0, err
    assert _exact(rows_of(tmp_path / "run")) == _exact(whole)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [("--mesh.fsdp", 4), ("--mesh.data", 2, "--mesh.fsdp", 1, "--mesh.tensor", 2)])
def test_simulated_devices_train_the_same_run_and_resume_one_anothers(process, config_file, tmp_path, rows_of, mesh):
    status, _, err = process("train", config_file)
    assert status == 0, err
    one = rows_of(tmp_path / "run")
    # Eight steps on one device, the rest once more on four: mesh and accumulation are free to change.
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "12")
    status, _, err = process("train", config_file, "--distributed.cpu-devices", 4, *mesh, "--train.accumulation", 2)
    assert status == 0 and "continuing" in err and "after step 8" in err, err
    four = rows_of(tmp_path / "run")
    for ours, reference in zip(four, one, strict=True):
        for name in ("loss", "grad_norm", "eval/loss"):
            if name in reference:
                assert ours[name] == pytest.approx(reference[name], rel=2e-3), (reference["step"], name)
    assert four[8]["loss"] == pytest.approx(one[8]["loss"], rel=1e-5)
    assert [row["tokens"] for row in four if "loss" in row] == [row["tokens"] for row in one if "loss" in row]


@pytest.mark.slow
def test_two_processes_train_evaluate_save_and_resume_like_one(command, run, config_file, tmp_path, rows_of, free_port):
    options = ("--train.steps", 20, "--train.batch-size", 8, "--mesh.fsdp", 8, "--train.save-every", 10)
    status, _, err = run("train", config_file, *options, "--workdir", tmp_path / "one")
    assert status == 0, err

    def both(*more):
        processes = [
            command(
                "train", config_file, *options, *more, "--distributed.cpu-devices", 4, "--distributed.processes", 2,
                "--distributed.process-id", i, "--distributed.coordinator", f"127.0.0.1:{free_port}",
            )
            for i in range(2)
        ]  # fmt: skip
        return processes

    first = both()
    _wait_for(lambda: (tmp_path / "run" / "checkpoints" / "10").is_dir(), first[0])
    for process in first:
        process.kill()
        process.wait()
    for process in both():
        _, err = process.communicate(timeout=240)
        assert process.returncode == 0, err
    one, two = rows_of(tmp_path / "one"), rows_of(tmp_path / "run")
    assert [row["step"] for row in two] == [row["step"] for row in one]
    for ours, reference in zip(two, one, strict=True):
        for name in ("loss", "eval/loss"):
            if name in reference:
                assert ours[name] == pytest.approx(reference[name], rel=2e-3), (reference["step"], name)
    assert two[0]["loss"] == pytest.approx(one[0]["loss"], rel=1e-6)

    # One process goes on where two stopped.
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "20")
    status, _, err = run("train", config_file, *options)
    assert status == 0 and "after step 10" in err, err
    assert [row["tokens"] for row in rows_of(tmp_path / "run") if "loss" in row] == [
        row["tokens"] for row in one if "loss" in row
    ]
    assert rows_of(tmp_path / "run")[-1]["eval/loss"] == pytest.approx(one[-1]["eval/loss"], rel=2e-3)


@pytest.mark.slow
def test_the_gradients_of_two_processes_of_four_devices_equal_one_of_eight(command, config_file, tmp_path, free_port):
    options = ("--train.batch-size", 8, "--train.accumulation", 1, "--mesh.data", 2, "--mesh.fsdp", 4)

    def gradients(name, processes, devices):
        out = tmp_path / name
        started = [
            command(
                config_file, out, *options, "--workdir", tmp_path / "w", "--distributed.cpu-devices", devices,
                "--distributed.processes", processes, "--distributed.process-id", i, "--distributed.coordinator",
                f"127.0.0.1:{free_port}", module="tests.train.gradients",
            )
            for i in range(processes)
        ]  # fmt: skip
        for process in started:
            _, err = process.communicate(timeout=240)
            assert process.returncode == 0, err
        return np.load(out)

    one, two = gradients("one.npz", 1, 8), gradients("two.npz", 2, 4)
    np.testing.assert_allclose(two["loss_sum"], one["loss_sum"], rtol=1e-6)
    assert two["weight_sum"] == one["weight_sum"]
    for name in one:
        scale = np.abs(one[name]).max()
        assert scale > 0 and np.abs(two[name] - one[name]).max() <= 5e-4 * scale, name


@pytest.mark.slow
def test_two_processes_leave_together_on_sigterm_with_42(command, config_file, tmp_path, rows_of, free_port):
    """Also the second time, when the polls and the steps count differently."""
    workdir = tmp_path / "run"
    options = ("--train.steps", 2000, "--train.save-every", 2, "--train.eval-every", 3, "--train.keep-last", 1)
    reached = 0
    for _ in range(2):
        processes = [
            command(
                "train", config_file, *options, "--distributed.cpu-devices", 2, "--distributed.processes", 2,
                "--distributed.process-id", i, "--distributed.coordinator", f"127.0.0.1:{free_port}",
            )
            for i in range(2)
        ]  # fmt: skip

        def further(least=reached + 5):
            return (
                (workdir / "metrics.jsonl").is_file() and rows_of(workdir)[-1:] and rows_of(workdir)[-1]["step"] > least
            )

        _wait_for(further, processes[0])
        processes[1].send_signal(signal.SIGTERM)
        for process in processes:
            _, err = process.communicate(timeout=120)
            assert process.returncode == 42, err
        [saved] = [int(p.name) for p in (workdir / "checkpoints").iterdir()]
        assert saved == rows_of(workdir)[-1]["step"] > reached
        reached = saved


@pytest.mark.slow
def test_a_process_that_fails_alone_ends_at_once_and_takes_the_other_with_it(command, config_file, free_port):
    """JAX by itself would hold both for five minutes and abort them with 134."""
    started = time.monotonic()
    processes = [
        command(
            "train", config_file, "--distributed.cpu-devices", 2, "--distributed.processes", 2,
            "--distributed.process-id", i, "--distributed.coordinator", f"127.0.0.1:{free_port}", module=module,
        )
        for i, module in enumerate(("sft_jax", "tests.integration.broken_source"))
    ]  # fmt: skip
    (_, other), (_, broken) = (process.communicate(timeout=200) for process in processes)
    assert processes[1].returncode == 1 and "disk gone" in broken, broken
    assert processes[0].returncode != 0, other
    assert time.monotonic() - started < 90


def test_a_run_that_meets_nan_stops_names_step_and_rows_and_exits_1(run, config_file, tmp_path):
    options = ("--optimizer.learning-rate", 1e30, "--optimizer.warmup-steps", 0, "--train.save-every", 1)
    status, _, err = run("train", config_file, *options)
    assert status == 1, err
    assert "step 2" in err and "train.jsonl:" in err and "Traceback" not in err
    # The save that was under way is whole, and there is none of the bad step.
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["1"]


def test_an_error_of_the_source_ends_the_run_non_zero(command, config_file, tmp_path, rows_of):
    """Not with status 0 and fewer steps, as if the data had ended."""
    process = command("train", config_file, module="tests.integration.broken_source")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1 and "disk gone" in err
    assert [row["step"] for row in rows_of(tmp_path / "run")] == [1, 2]
