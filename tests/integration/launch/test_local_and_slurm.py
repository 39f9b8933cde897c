"""`launch/`: the scripts lint clean, and a real Slurm of this machine runs, preempts, requeues and finishes a run."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.xdist_group("machine")  # its processes keep to seconds: one such test at a time
ROOT = Path(__file__).resolve().parents[3]
LOCAL, SBATCH = ROOT / "launch" / "local.sh", ROOT / "launch" / "slurm" / "train.sbatch"


def losses(workdir: Path) -> dict[int, float]:
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    found = [(row["step"], row["loss"]) for row in rows if "loss" in row]
    assert len(dict(found)) == len(found), "a step appears twice"
    return dict(found)


def wait_for(ready, seconds: float, what):
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end, what()
        time.sleep(0.2)


@pytest.mark.parametrize("script", [LOCAL, SBATCH], ids=lambda path: path.name)
def test_shellcheck_finds_nothing(script):
    checked = subprocess.run([Path(sys.executable).with_name("shellcheck"), script], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize("arguments", [[], ["2", "4"], ["0", "4", "c.py"], ["two", "4", "c.py"]])
def test_local_says_how_it_is_used(arguments):
    done = subprocess.run([LOCAL, *arguments], capture_output=True, text=True)
    assert done.returncode == 2 and "usage: launch/local.sh PROCESSES DEVICES CONFIG" in done.stderr


@pytest.mark.slow
def test_local_runs_n_processes_passes_a_signal_on_and_a_rerun_goes_on(config_file, tmp_path):
    def start(workdir, *more):
        return subprocess.Popen(
            [LOCAL, "2", "4", config_file, "--workdir", tmp_path / "a path" / workdir, *more],
            env={**os.environ, "TMPDIR": str(tmp_path)},
            stderr=subprocess.PIPE,
            text=True,
        )

    whole = start("whole")
    _, err = whole.communicate(timeout=200)
    assert whole.returncode == 0, err
    assert "processes 1 to 1: " in err and "done: " in err
    stopped = start("stopped", "--train.steps", "12")
    wait_for(lambda: _rows(tmp_path / "a path" / "stopped") >= 2, 100, lambda: stopped.stderr.read())
    stopped.send_signal(signal.SIGTERM)
    _, err = stopped.communicate(timeout=100)
    assert stopped.returncode == 42 and "stopped after step" in err, err
    again = start("stopped")
    _, err = again.communicate(timeout=200)
    assert again.returncode == 0 and "continuing" in err, err
    assert losses(tmp_path / "a path" / "stopped") == losses(tmp_path / "a path" / "whole")
    refused = start("whole", "--mesh.fsdp", "3")
    _, err = refused.communicate(timeout=100)
    assert refused.returncode == 2 and "needs 3 devices, found 8" in err, err


def _rows(workdir: Path) -> int:
    path = workdir / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


# --- a real Slurm -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """The environment in which sbatch finds a cluster of this machine alone; skipped where Slurm is not installed."""
    if missing := [name for name in ("munged", "slurmctld", "slurmd", "sbatch") if shutil.which(name) is None]:
        pytest.skip(f"{', '.join(missing)} not found: install slurm-wlm and munge")
    if os.getuid() != 0:
        pytest.skip("slurmd starts jobs as root only")
    place = tmp_path_factory.mktemp("slurm")
    for folder in ("state", "spool"):
        (place / folder).mkdir()
    (place / "munge.key").write_bytes(os.urandom(1024))
    (place / "munge.key").chmod(0o600)
    ports = []
    for _ in range(2):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            ports.append(probe.getsockname()[1])
    host = socket.gethostname().split(".")[0]
    (place / "slurm.conf").write_text(
        f"""ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={place}/munge.socket
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
StateSaveLocation={place}/state
SlurmdSpoolDir={place}/spool
SlurmctldPidFile={place}/slurmctld.pid
SlurmdPidFile={place}/slurmd.pid
SlurmctldLogFile={place}/slurmctld.log
SlurmdLogFile={place}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobRequeue=1
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs={os.cpu_count()} State=UNKNOWN
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""
    )
    environment = {**os.environ, "SLURM_CONF": str(place / "slurm.conf")}
    munge = [f"--{name}={place}/munge.{end}" for name, end in (("key-file", "key"), ("socket", "socket"))]
    munge += [f"--{name}={place}/munged.{end}" for name, end in (("pid-file", "pid"), ("log-file", "log"))]
    daemons = []
    with (place / "daemons.log").open("w") as log:
        for command in (
            ["munged", "--force", "--foreground", f"--seed-file={place}/munged.seed", *munge],
            ["slurmctld", "-D"],
            ["slurmd", "-D"],
        ):
            daemons.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
            time.sleep(1)

    def idle():
        return "idle" in subprocess.run(["sinfo", "-h"], env=environment, capture_output=True, text=True).stdout

    wait_for(idle, 30, lambda: (place / "daemons.log").read_text())
    yield environment
    for daemon in reversed(daemons):
        daemon.terminate()
        daemon.wait(20)


def _state(job: str, environment) -> dict[str, str]:
    shown = subprocess.run(["scontrol", "show", "job", job], env=environment, capture_output=True, text=True).stdout
    return dict(re.findall(r"(\w+)=(\S*)", shown))


@pytest.mark.slow
def test_a_slurm_job_is_preempted_requeued_and_finishes_with_the_losses_of_one_that_was_not(
    slurm, config_file, tmp_path
):
    (tmp_path / "secrets").write_text("HF_TOKEN='of mine'\n")
    (tmp_path / "secrets").chmod(0o600)

    def submit(workdir: Path, name: str) -> str:
        submitted = subprocess.run(
            ["sbatch", "--parsable", "--nodes=1", "--ntasks-per-node=2", "--cpus-per-task=1", "--gpus-per-task=0",
             f"--job-name={name}", f"--output={tmp_path}/{name}-%j.log", SBATCH, config_file, "--workdir", workdir,
             "--distributed.cpu-devices", "4", "--train.steps", "60", "--train.eval-every", "0",
             "--train.save-every", "0"],
            env={**slurm, "SFT_JAX_ENV_FILE": str(tmp_path / "secrets")},
            cwd=ROOT, capture_output=True, text=True,
        )  # fmt: skip
        assert submitted.returncode == 0, submitted.stderr
        return submitted.stdout.strip()

    def said(name: str, job: str) -> str:
        return (tmp_path / f"{name}-{job}.log").read_text()

    def finished(job: str, name: str):
        wait_for(
            lambda: _state(job, slurm).get("JobState") in ("COMPLETED", "FAILED", "CANCELLED"),
            200,
            lambda: f"{_state(job, slurm)}\n{said(name, job)}",
        )
        assert _state(job, slurm)["JobState"] == "COMPLETED", said(name, job)

    try:
        job = submit(tmp_path / "whole", "whole")
        finished(job, "whole")
        assert "start 1 of job" in said("whole", job) and "done: " in said("whole", job)

        job = submit(tmp_path / "stopped", "stopped")
        wait_for(lambda: _rows(tmp_path / "stopped") >= 3, 100, lambda: said("stopped", job))
        # What --signal sends before the end of the time, and a preemption with a grace time.
        subprocess.run(["scancel", "--batch", "--signal=TERM", job], env=slurm, check=True)
        wait_for(lambda: "back into the queue" in said("stopped", job), 60, lambda: said("stopped", job))
        assert "stopped after step" in said("stopped", job)
        assert 3 <= _rows(tmp_path / "stopped") < 60
        # A requeued job waits two minutes; an administrator may shorten that.
        wait_for(lambda: _state(job, slurm)["JobState"] == "PENDING", 60, lambda: str(_state(job, slurm)))
        subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now"], env=slurm, check=True)
        finished(job, "stopped")
        assert "start 2 of job" in said("stopped", job) and "continuing" in said("stopped", job)
        assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")
        assert len(losses(tmp_path / "whole")) == 60
        assert "of mine" not in said("stopped", job)
    finally:
        for folder in ROOT.glob("*-*.tasks"):
            shutil.rmtree(folder)
