"""launch/tpu_vm.sh through the lives of slices, played by a stand-in for gcloud that knows only documented flags."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.xdist_group("machine")  # its processes keep to seconds: one such test at a time
ROOT = Path(__file__).resolve().parents[3]
SCRIPT = ROOT / "launch" / "tpu_vm.sh"
ACTIVE = {"states": ["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]}

PROGRAM = """#!/usr/bin/env bash
# What the workers have instead of sft-jax: worker 0 writes down what it was given; each start ends as PLAY/ends says.
printf '%s\\n' "$@" >"$PLAY/arguments-$WORKER"
echo "worker $WORKER trains with ${HF_TOKEN:-no token}" | sed 's/of mine/the token/'
start=$(cat "$PLAY/starts-$WORKER" 2>/dev/null || echo 0)
echo $((start + 1)) >"$PLAY/starts-$WORKER"
status=$(sed -n "$((start + 1))p" "$PLAY/ends-$WORKER")
if [[ $status == wait ]]; then
  trap 'echo saved; exit 42' TERM
  for _ in $(seq 300); do sleep 0.1; done
fi
echo "worker $WORKER leaves with $status"
exit "$status"
"""


class Cloud:
    """What the stand-in plays, and what it was asked."""

    def __init__(self, place: Path):
        self.place = place
        (place / "bin").mkdir()
        gcloud = place / "bin" / "gcloud"
        stand_in = Path(__file__).with_name("gcloud_stand_in.py")
        gcloud.write_text(f'#!/bin/sh\nexec "{sys.executable}" -SE "{stand_in}" "$@"\n')
        programs = place / "fresh" / "sft_jax" / ".venv" / "bin"
        programs.mkdir(parents=True)
        for name, text in (("python", "#!/bin/sh\n"), ("pip", "#!/bin/sh\n"), ("sft-jax", PROGRAM)):
            (programs / name).write_text(text)
            (programs / name).chmod(0o755)
        gcloud.chmod(0o755)
        self.environment = {
            **os.environ,
            "PATH": f"{place / 'bin'}:{os.environ['PATH']}",
            "PLAY": str(place),
            "SFT_JAX_POLL_SECONDS": "0",
        }

    def plays(self, ends=(("0",), ("0",)), **zones) -> None:
        """`ends`: for each worker how its starts end, one after the other."""
        (self.place / "play.json").write_text(
            json.dumps({name.replace("_", "-"): lives for name, lives in zones.items()})
        )
        for worker, each in enumerate(ends):
            (self.place / f"ends-{worker}").write_text("".join(f"{end}\n" for end in each))

    def start(self, *words, **options) -> subprocess.Popen:
        return subprocess.Popen(
            [SCRIPT, *words], env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
        )

    def run(self, *words) -> tuple[int, str, str]:
        process = self.start(*words)
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err

    def calls(self, verb="") -> list:
        lines = (self.place / "calls.jsonl").read_text().splitlines()
        return [call for call in map(json.loads, lines) if call[0].endswith(verb)]


@pytest.fixture
def cloud(tmp_path):
    return Cloud(tmp_path)


RUN = ("run", "mine", "--type", "v6e-16", "--zone", "east", "--spot", "--", "configs/llama31_8b.py")


def test_shellcheck_finds_nothing():
    checked = subprocess.run([Path(sys.executable).with_name("shellcheck"), SCRIPT], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


def test_from_nothing_to_done_with_every_state_told_and_the_slice_deleted(cloud):
    cloud.plays(east=[ACTIVE])
    odd = ("--workdir", "a path/it's", "--data.train", 'x"y.jsonl', "$HOME", "")
    status, out, err = cloud.run(*RUN, *odd)
    assert status == 0, err
    for word in ("WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE", "is deleted"):
        assert word in err
    assert "worker 0 trains" in out and "worker 1" not in out
    [create] = cloud.calls("create")
    assert create[2] == {
        "node-id": "mine", "accelerator-type": "v6e-16", "runtime-version": "v2-alpha-tpuv6e", "spot": "",
        "zone": "east", "quiet": "",
    }  # fmt: skip
    for worker in "01":
        given = (cloud.place / f"arguments-{worker}").read_text().split("\n")[:-1]
        assert given == [
            "train", "configs/llama31_8b.py", *odd, "--distributed.auto", "True", "--distributed.devices", "16"
        ]  # fmt: skip
    assert [call[0] for call in cloud.calls("delete")] == ["queued-resources delete"]
    copied = cloud.place / "workers" / "0" / "sft_jax"
    assert (copied / "configs" / "llama31_8b.py").is_file() and not (copied / ".git").exists()


def test_a_preempted_slice_is_replaced_and_the_run_started_again(cloud):
    # Commands on workers: scp, set up, start, log; then the slice is gone.
    lost = {**ACTIVE, "lost_after": 4, "then": "SUSPENDED"}
    cloud.plays(ends=(("wait", "0"), ("wait", "0")), east=[lost, ACTIVE])
    status, _, err = cloud.run(*RUN)
    assert status == 0, err
    assert "cannot reach a worker: mine in east is SUSPENDED" in err
    assert len(cloud.calls("create")) == 2 and len(cloud.calls("delete")) == 2
    assert (cloud.place / "starts-0").read_text() == "2\n"


def test_status_42_starts_again_on_the_same_slice(cloud):
    cloud.plays(ends=(("42", "0"), ("42", "0")), east=[ACTIVE])
    status, _, err = cloud.run(*RUN)
    assert status == 0 and "status 42" in err, err
    assert len(cloud.calls("create")) == 1 and (cloud.place / "starts-1").read_text() == "2\n"


@pytest.mark.parametrize(("ends", "expected"), [(("2", "2"), 2), (("0", "1"), 1), (("42", "1"), 1)])
def test_a_run_that_fails_on_any_worker_ends_with_its_status_and_is_not_repeated(cloud, ends, expected):
    cloud.plays(ends=tuple((end,) for end in ends), east=[ACTIVE])
    status, _, err = cloud.run(*RUN)
    assert status == expected, err
    assert "costs money" in err and "delete mine --zone east" in err and not cloud.calls("delete")


@pytest.mark.slow
def test_without_stock_or_quota_the_next_zone_is_asked(cloud):
    cloud.plays(
        east=[{"create_error": "RESOURCE_EXHAUSTED: Quota limit 'TPUV6EPreemptible' has been exceeded"}],
        west=[{"states": ["ACCEPTED", "FAILED"]}],
        north=[ACTIVE],
    )
    words = [word if word != "east" else "east,west,north" for word in RUN]
    status, _, err = cloud.run(*words)
    assert status == 0, err
    assert [call[2]["zone"] for call in cloud.calls("create")] == ["east", "west", "north"]
    assert [call[2]["zone"] for call in cloud.calls("delete")] == ["west", "north"]  # what failed is cleared away
    assert "Quota limit" in err and "mine in west: FAILED" in err


def test_what_no_other_try_can_mend_ends_at_once(cloud):
    cloud.plays(east=[{"create_error": "PERMISSION_DENIED: Permission 'tpu.nodes.create' denied"}])
    status, _, err = cloud.run(*RUN)
    assert status == 2 and "tpu.nodes.create" in err and len(cloud.calls("create")) == 1


def test_after_the_attempts_it_says_so(cloud):
    cloud.plays(east=[{"states": ["FAILED"]}])
    status, _, err = cloud.run(*RUN[:2], "--attempts", "2", *RUN[2:])
    assert status == 2 and "no finished run after 2 attempts in east" in err and len(cloud.calls("create")) == 2


def test_several_slices_are_one_request_and_all_their_workers_run(cloud):
    cloud.plays(ends=(("0", "0"), ("0", "0")), east=[ACTIVE])
    status, _, err = cloud.run(*RUN[:2], "--slices", "2", *RUN[2:])
    assert status == 0, err
    [create] = cloud.calls("create")
    assert create[2]["node-count"] == "2" and create[2]["node-prefix"] == "mine"
    assert {call[1][0] for call in cloud.calls("ssh")} == {"mine-0", "mine-1"}
    assert "32" in (cloud.place / "arguments-0").read_text().split("\n")


def test_a_run_is_not_started_with_code_that_could_not_be_copied(cloud):
    cloud.plays(east=[{**ACTIVE, "copy_fails": True}])
    status, _, err = cloud.run(*RUN[:2], "--attempts", "2", *RUN[2:])
    assert status == 2 and "no finished run after 2 attempts" in err, err
    assert not cloud.calls("ssh") and not (cloud.place / "starts-0").exists()


def test_direct_creates_a_vm(cloud):
    cloud.plays(east=[{"states": ["CREATING", "READY"]}])
    status, _, err = cloud.run(*RUN[:2], "--direct", *RUN[2:])
    assert status == 0, err
    assert [call[0] for call in cloud.calls("create")] == ["tpu-vm create"]
    assert [call[0] for call in cloud.calls("delete")] == ["tpu-vm delete"]


def test_secrets_come_by_a_file_and_stand_in_no_argument(cloud, tmp_path):
    cloud.plays(east=[ACTIVE])
    (tmp_path / "env").write_text("HF_TOKEN='of mine'\n")
    status, out, err = cloud.run(*RUN[:2], "--env-file", str(tmp_path / "env"), *RUN[2:])
    assert status == 0 and "trains with the token" in out, err
    assert "of mine" not in (tmp_path / "calls.jsonl").read_text()
    kept = tmp_path / "workers" / "0" / "sft_jax" / ".env"
    assert kept.stat().st_mode & 0o777 == 0o600 and not (tmp_path / "workers" / "0" / "env").exists()


@pytest.mark.slow
def test_a_run_that_was_cut_off_here_goes_on_and_is_stopped_by_hand(cloud):
    cloud.environment["SFT_JAX_POLL_SECONDS"] = "0.2"
    cloud.plays(ends=(("wait",), ("wait",)), east=[ACTIVE])
    first = cloud.start(*RUN, start_new_session=True)
    assert "worker 0 trains" in first.stdout.readline() + first.stdout.readline()
    os.killpg(first.pid, signal.SIGKILL)  # the laptop is closed; on the workers the run goes on
    first.communicate()
    status, out, err = cloud.run("status", "mine", "--zone", "east")
    assert status == 0 and "mine in east: ACTIVE" in out and "runs" in out, err
    second = cloud.start(*RUN)
    assert "== start" in second.stdout.readline()
    status, out, err = cloud.run("logs", "mine", "--zone", "east")
    assert status == 0 and "worker 1 trains" in out, err
    time.sleep(1)
    status, _, err = cloud.run("stop", "mine", "--zone", "east")
    assert status == 0, err
    out, err = second.communicate(timeout=60)
    assert second.returncode == 42 and "stopped by hand" in err and "saved" in out, err
    assert len(cloud.calls("create")) == 1 and (cloud.place / "starts-0").read_text() == "1\n"
    assert cloud.run("delete", "mine", "--zone", "east")[0] == 0
    assert cloud.run("status", "mine", "--zone", "east")[0] == 1


def test_dry_run_prints_the_commands_and_runs_none(cloud):
    status, out, _ = cloud.run(*RUN[:2], "--dry-run", *RUN[2:], "--workdir", "a b")
    assert status == 0 and not (cloud.place / "calls.jsonl").exists()
    lines = [line for line in out.splitlines() if line.startswith("gcloud compute tpus ")]
    assert lines[0].startswith(
        "gcloud compute tpus queued-resources create mine --node-id mine --accelerator-type v6e-16"
    )
    assert r"a\ b" in out and any(" scp " in line for line in lines) and "queued-resources delete" in lines[-1]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), "launch/tpu_vm.sh run NAME"),
        (("start", "x"), "unknown command 'start'"),
        (("run", "Mine", "--zone", "z"), "'Mine' is not a valid Cloud TPU name"),
        (("run", "mine", "--type", "v6e-8", "--", "c.py"), "--zone is missing"),
        (("run", "mine", "--zone", "z", "--", "c.py"), "--type is missing"),
        (("run", "mine", "--zone", "z", "--type", "v6e-8"), "the run's arguments are missing"),
        (("run", "mine", "--zone", "z", "--type", "v5e-8", "--", "c.py"), "spells it v5litepod-8"),
        (("run", "mine", "--zone", "z", "--type", "h100-8", "--", "c.py"), "--type h100-8: known types are"),
        (("run", "mine", "--zone", "z", "--type", "v6e-8", "c.py"), "unknown option c.py"),
        (("run", "mine", "--zone", "z", "--spot", "--reserved", "--", "c.py"), "exclude each other"),
        (("run", "mine", "--zone"), "--zone needs a value"),
        (("run", "mine", "--zone", "z", "--slices", "two", "--", "c.py"), "--slices two"),
        (("run", "mine", "--zone", "z", "--type", "v6e-8", "--env-file", "/no/file", "--", "c.py"), "cannot be read"),
    ],
)
def test_bad_input_ends_with_2_and_says_what_was_expected(cloud, words, expected):
    status, out, err = cloud.run(*words)
    assert status == 2 and expected in err and not out, err
