"""launch/gke/run.sh through the lives of JobSets, played by a stand-in for kubectl that knows what it documents."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = ROOT / "launch" / "gke" / "run.sh"

WAITS = {"pods": [{"phase": "Pending", "unschedulable": "0/3 nodes are available: 3 Insufficient google.com/tpu."}]}
RUNS = {"pods": [{"phase": "Running"}, {"phase": "Running", "host": 1}], "log": "worker 0 trains\n"}
DONE = {"completed": True, "pods": [{"phase": "Succeeded", "code": 0}, {"phase": "Succeeded", "host": 1, "code": 0}]}
NEW = ({}, WAITS, RUNS, DONE)


def failed(code: int, others: int = 0, **stage) -> dict:
    pods = [{"phase": "Failed", "code": others or code}, {"phase": "Failed", "host": 1, "code": code}]
    return {"failed": "FailJobSetFailurePolicyAction", "pods": pods, **stage}


class Cluster:
    """What the stand-in plays, and what it was asked."""

    def __init__(self, place: Path):
        self.place = place
        (place / "bin").mkdir()
        kubectl = place / "bin" / "kubectl"
        stand_in = Path(__file__).with_name("kubectl_stand_in.py")
        kubectl.write_text(f'#!/bin/sh\nexec "{sys.executable}" -SE "{stand_in}" "$@"\n')
        kubectl.chmod(0o755)
        self.environment = {
            **os.environ,
            "PATH": f"{place / 'bin'}:{os.environ['PATH']}",
            "PLAY": str(place),
            "SFT_JAX_POLL_SECONDS": "0",
        }

    def plays(self, *lives, errors=None) -> None:
        (self.place / "play.json").write_text(json.dumps({"lives": lives, "errors": errors or {}}))

    def start(self, *words, **options) -> subprocess.Popen:
        return subprocess.Popen(
            [SCRIPT, *words], env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
        )

    def run(self, *words) -> tuple[int, str, str]:
        out, err = (process := self.start(*words)).communicate(timeout=60)
        return process.returncode, out, err

    def calls(self, command="") -> list:
        path = self.place / "calls.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [call for call in map(json.loads, lines) if call[0].startswith(command)]

    def created(self, number=0) -> dict:
        return yaml.safe_load((self.place / f"created-{number}").read_text())


@pytest.fixture
def cluster(tmp_path):
    return Cluster(tmp_path)


def run(*words, arguments=("configs/llama31_8b.py", "--workdir", "gs://bucket/a")) -> tuple[str, ...]:
    return ("run", "mine", "--topology", "v6e:2x4", "--image", "example.com/sft-jax:1", *words, "--", *arguments)


def container(jobset: dict) -> dict:
    [main] = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"]
    return main


def test_shellcheck_finds_nothing():
    checked = subprocess.run([Path(sys.executable).with_name("shellcheck"), SCRIPT], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


def test_from_nothing_to_done_with_every_state_told_and_worker_0_followed(cluster):
    cluster.plays(NEW)
    status, out, err = cluster.run(*run("--namespace", "ml"))
    assert status == 0 and out == "worker 0 trains\n", err
    told = [
        "created: tpu-v6e-slice, 1 x 2 hosts of 4",
        "mine: start 1, no pod yet",
        "pods: 1 pending; mine-slice-0-0-r0 is not scheduled: Unschedulable: 0/3 nodes are available: 3 Insufficient",
        "mine: start 1, pods: 2 running",
        "mine: completed",
        "status 0; the remaining JobSet costs nothing",
    ]
    assert [err.index(each) for each in told] == sorted(err.index(each) for each in told)
    assert all(call[2]["namespace"] == "ml" for call in cluster.calls()) and not cluster.calls("delete")
    assert cluster.calls("logs") == [["logs", ["mine-slice-0-0-r0"], {"c": "sft-jax", "follow": "", "namespace": "ml"}]]


def test_words_reach_the_program_unchanged(cluster):
    odd = [
        "a path/it's",
        'x"y.jsonl',
        "$HOME",
        "$(JOB_COMPLETION_INDEX)",
        "$$",
        "{}[]: # <- name",
        "",
        "\\n",
        "a\nb\tc",
        "ü&",
    ]
    cluster.plays(NEW)
    status, _, err = cluster.run(*run(arguments=("c.py", "--workdir", *odd)))
    assert status == 0, err
    given = container(cluster.created())["args"]
    # What Kubernetes makes of them: `$$` is a $, and no `$(NAME)` is left that it would fill in.
    assert [word.replace("$$", "$") for word in given] == [
        "train", "c.py", "--workdir", *odd, "--distributed.auto", "True", "--distributed.timeout-seconds", "21600",
        "--distributed.devices", "8",
    ]  # fmt: skip
    assert not any("$(" in word.replace("$$", "") for word in given)


def test_a_time_limit_of_the_users_own_stays(cluster):
    cluster.plays(NEW)
    cluster.run(*run(arguments=("c.py", "--distributed.timeout-seconds", "60")))
    assert container(cluster.created())["args"].count("--distributed.timeout-seconds") == 1


def test_a_restart_by_jobset_is_told_and_its_log_followed(cluster):
    again = {**RUNS, "restarts": 1, "log": "continuing\n"}
    cluster.plays([RUNS, {"restarts": 1}, again, DONE | {"restarts": 1}])
    status, out, err = cluster.run(*run())
    assert status == 0 and out == "worker 0 trains\ncontinuing\n", err
    assert "start 2, no pod yet" in err and "start 2, pods: 2 running" in err
    assert len(cluster.calls("create")) == 1


@pytest.mark.parametrize("code", [1, 2])
def test_a_failure_is_the_status_also_where_worker_0_was_only_told_to_stop(cluster, code):
    cluster.plays([RUNS, failed(code, others=42)])
    status, _, err = cluster.run(*run())
    assert status == code and "mine: failed (FailJobSetFailurePolicyAction)" in err, err


def test_a_run_that_was_started_again_too_often_ends_with_42(cluster):
    cluster.plays([RUNS, failed(42, failed="ReachedMaxRestarts")])
    assert cluster.run(*run("--restarts", "3"))[0] == 42
    assert cluster.created()["spec"]["failurePolicy"]["maxRestarts"] == 3


def test_a_log_that_breaks_off_goes_on_from_there(cluster):
    cluster.plays([RUNS | {"cut": True, "log": "step 1\n"}, RUNS | {"log": "step 2\n"}, DONE])
    status, out, err = cluster.run(*run())
    assert status == 0 and out == "step 1\nstep 2\n", err
    first, second = cluster.calls("logs")
    assert "since-time" not in first[2] and second[2]["since-time"].startswith("20")


def test_a_queue_and_a_container_that_cannot_start_are_told(cluster):
    labels = {"kueue.x-k8s.io/queue-name": "team"}
    waiting = {"labels": labels, "pods": [{"phase": "Pending", "waiting": "ImagePullBackOff"}]}
    cluster.plays([{"suspend": True, "labels": labels}, waiting, {"suspend": True}, RUNS, DONE])
    status, _, err = cluster.run(*run("--queue", "team"))
    assert status == 0 and cluster.created()["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team"
    assert "suspended: Kueue's queue team has no room for it yet" in err and "mine: suspended\n" in err
    assert "mine-slice-0-0-r0 waits: ImagePullBackOff" in err


def test_run_again_attaches_to_a_run_that_goes_on(cluster):
    cluster.plays([RUNS | {"lasts": True}, DONE])
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # or a script in the background would ignore it
    first = cluster.start(*run(), start_new_session=True)
    signal.signal(signal.SIGINT, before)
    assert first.stdout.readline() == "worker 0 trains\n"
    os.killpg(first.pid, signal.SIGINT)  # Ctrl-C; in the cluster the run goes on
    _, err = first.communicate(timeout=30)
    assert first.returncode == 130 and "the run continues. To attach: the same command" in err
    second = cluster.start(*run())
    assert second.stdout.readline() == "worker 0 trains\n"
    (cluster.place / "end").touch()
    _, err = second.communicate(timeout=30)
    assert second.returncode == 0 and "attaching to it" in err and len(cluster.calls("create")) == 1, err


def test_stop_saves_and_run_again_goes_on(cluster):
    cluster.plays([RUNS | {"lasts": True}], [RUNS, DONE])
    first = cluster.start(*run())
    assert first.stdout.readline() == "worker 0 trains\n"
    status, _, err = cluster.run("stop", "mine")
    assert status == 0 and "signalled: every pod finishes its step, saves" in err and "all pods have ended" in err, err
    assert [call[2]["p"] for call in cluster.calls("patch")] == ['{"spec":{"suspend":true}}']
    _, err = first.communicate(timeout=30)
    assert first.returncode == 42 and "stopped by hand; the same command continues" in err, err
    status, out, _ = cluster.run("status", "mine")
    assert status == 0 and "mine: stopped by hand, no pod yet" in out
    status, _, err = cluster.run(*run())
    assert status == 0 and "restarting it" in err and len(cluster.calls("create")) == 2, err
    assert [call[2]["cascade"] for call in cluster.calls("delete")] == ["foreground"]


def test_stop_tells_kueue_where_it_decides(cluster):
    cluster.plays([RUNS | {"labels": {"kueue.x-k8s.io/queue-name": "team"}}])
    (cluster.place / "now.json").write_text(
        json.dumps(
            {"life": 0, "exists": True, "stage": -1, "annotations": {}, "told": False, "leaving": 0, "errors": {}}
        )
    )
    status, _, err = cluster.run("stop", "mine")
    assert status == 0, err
    assert [call[0] for call in cluster.calls()[-4:]] == ["patch", "get", "get", "get"]  # until the pods are gone
    [[_, positional, options]] = cluster.calls("patch")
    assert positional == ["workload.kueue.x-k8s.io/jobset-mine-1a2b3"] and options["p"] == '{"spec":{"active":false}}'


@pytest.mark.parametrize("end", [DONE, failed(1)], ids=["done", "failed"])
def test_run_again_after_the_end_makes_it_new_with_the_new_arguments(cluster, end):
    cluster.plays([RUNS, end], [RUNS, DONE])
    cluster.run(*run())
    status, _, err = cluster.run(*run(arguments=("other.py", "--workdir", "gs://bucket/a")))
    assert status == 0 and "restarting it" in err, err
    assert container(cluster.created(1))["args"][1] == "other.py"


def test_delete_status_and_logs(cluster):
    cluster.plays([RUNS])
    assert cluster.run("status", "mine")[0] == 1 and cluster.run("stop", "mine")[0] == 1
    process = cluster.start(*run())
    process.stdout.readline()
    process.kill()
    process.communicate()
    status, out, _ = cluster.run("status", "mine")
    assert status == 0 and out == "mine: start 1, pods: 2 running\nworker 0 trains\n"
    assert cluster.run("logs", "mine")[1] == "worker 0 trains\n" and cluster.run("logs", "mine", "--all")[0] == 0
    first, every = (call[2]["l"] for call in cluster.calls("logs")[-2:])
    assert first == f"{every},jobset.sigs.k8s.io/job-index=0,batch.kubernetes.io/job-completion-index=0"
    assert cluster.run("delete", "mine")[0] == 0 and cluster.run("status", "mine")[0] == 1


def test_a_run_that_somebody_deleted_is_not_waited_for(cluster):
    cluster.plays([RUNS | {"lasts": True}])
    process = cluster.start(*run())
    process.stdout.readline()
    assert cluster.run("delete", "mine")[0] == 0
    (cluster.place / "end").touch()
    _, err = process.communicate(timeout=30)
    assert process.returncode == 42 and "mine is gone: somebody deleted it" in err, err


def test_an_api_that_answers_again_is_waited_for(cluster):
    refused = "The connection to the server 10.0.0.1 was refused - did you specify the right host or port?"
    cluster.plays(NEW, errors={"get jobset": [refused], "get pods": [refused, refused], "create": [refused]})
    status, _, err = cluster.run(*run())
    assert status == 0 and err.count("the cluster does not answer: The connection to the server") == 4, err


def test_an_api_that_does_not_answer_ends_the_watch_with_1(cluster):
    cluster.plays(NEW, errors={"get jobset": ["Unable to connect to the server: dial tcp: i/o timeout"] * 30})
    status, _, err = cluster.run(*run())
    assert status == 1 and "no answer 20 times" in err and "the same command attaches to it" in err, err


@pytest.mark.parametrize(
    ("command", "answer", "expected"),
    [
        ("create", 'Error from server (NotFound): namespaces "ml" not found', 'namespaces "ml" not found'),
        (
            "get jobset",
            'error: the server doesn\'t have a resource type "jobset"',
            "the cluster has no JobSet; install it",
        ),
        ("create", 'Error from server (Forbidden): jobsets is forbidden: User "me" cannot create', "cannot create"),
        ("create", 'The JobSet "mine" is invalid: spec.x: Required value', "Required value"),
        ("get jobset", "error: You must be logged in to the server (Unauthorized)", "must be logged in"),
    ],
)
def test_what_no_other_try_mends_ends_with_2(cluster, command, answer, expected):
    cluster.plays(NEW, errors={command: [answer]})
    status, out, err = cluster.run(*run())
    assert status == 2 and expected in err and not out, err


def test_secrets_are_named_and_stand_nowhere(cluster):
    cluster.plays(NEW)
    cluster.environment["HF_TOKEN"] = "of mine"
    assert cluster.run(*run("--secret", "hf", "--service-account", "trainer"))[0] == 0
    assert container(cluster.created())["envFrom"] == [{"secretRef": {"name": "hf"}}]
    written = [path.read_text() for path in cluster.place.iterdir() if path.is_file()]
    assert not any("of mine" in text for text in written)
    assert "trainer" in (cluster.place / "created-0").read_text()


def test_dry_run_prints_what_would_be_done_and_contacts_nothing(cluster):
    cluster.plays(NEW)
    status, out, err = cluster.run(*run("--dry-run", "--namespace", "ml"))
    assert status == 0 and not err
    lines = out.splitlines()
    delete = "kubectl delete jobset mine --ignore-not-found --cascade=foreground --namespace ml"
    assert [line.strip() for line in lines[:2]] == [delete, "kubectl create -f - --namespace ml  <<'END'"]
    assert lines[-1] == "END"
    for action in ("stop", "status", "logs", "delete"):
        status, out, _ = cluster.run(action, "mine", "--dry-run")
        assert status == 0 and all(line.startswith("kubectl ") for line in out.splitlines()) and out
    assert not cluster.calls()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), "launch/gke/run.sh run NAME"),
        (("start", "x"), "unknown command 'start'"),
        (("run", "Mine"), "'Mine' is not a valid Kubernetes name"),
        (("run", "1mine"), "'1mine' is not a valid Kubernetes name"),
        (("run", "m" * 47, "--image", "i", "--topology", "v6e:8x16", "--", "c.py"), "is 1 characters too long"),
        (("run", "mine", "--", "c.py"), "--topology or --gpu is missing"),
        (("run", "mine", "--topology", "v6e:4x4"), "the run's arguments are missing"),
        (("run", "mine", "--topology", "v6e:4x4", "--", "c.py"), "--image is missing: docker build --target tpu"),
        (("run", "mine", "--gpu", "h100", "--", "c.py"), "--image is missing: docker build --target cuda"),
        (("run", "mine", "--topology", "v6e:4x4", "--gpu", "h100", "--", "c.py"), "give one"),
        (("run", "mine", "--gpu", "h100", "--slices", "2", "--", "c.py"), "GPUs take --nodes"),
        (("run", "mine", "--gpu", "h100", "--host-network", "--", "c.py"), "--host-network is for TPU slices"),
        (("run", "mine", "--topology", "v6e:4x4", "--nodes", "2", "--", "c.py"), "TPUs take --slices"),
        (("run", "mine", "--topology", "v6e-16", "--", "c.py"), "v6e-16 is spelled v6e:4x4"),
        (("run", "mine", "--topology", "v5litepod-16", "--", "c.py"), "is spelled v5e:4x4"),
        (("run", "mine", "--topology", "v5p-16", "--", "c.py"), "is spelled v5p:2x2x2"),
        (("run", "mine", "--topology", "v6e:3x5", "--", "c.py"), "no such slice. The nearest is v6e:4x4"),
        (("run", "mine", "--topology", "v5p:4x4x2", "--", "c.py"), "The nearest is v5p:2x4x4"),
        (("run", "mine", "--topology", "v5p:16x24x24", "--", "c.py"), "The nearest is v5p:8x16x16"),
        (("run", "mine", "--topology", "v5p:8x4x8", "--", "c.py"), "The nearest is v5p:4x8x8"),
        (("run", "mine", "--topology", "v6e:x", "--", "c.py"), "expected the chips along its sides"),
        (("run", "mine", "--topology", "v6:4x4", "--", "c.py"), "Did you mean v6e:4x4?"),
        (("run", "mine", "--topology", "v7x:2x2x2", "--", "c.py"), "Did you mean tpu7x:2x2x2?"),
        (("run", "mine", "--topology", "trillium:4x4", "--", "c.py"), "unknown kind 'trillium'. Known: v4:2x2x4"),
        (("run", "mine", "--topology", "v6e:4x4", "--per-host", "3", "--", "c.py"), "has 16 chips"),
        (("run", "mine", "--gpu", "h100:8", "--", "c.py"), "did you mean h100 (a3-highgpu) or h100-mega"),
        (("run", "mine", "--gpu", "v100", "--", "c.py"), "known GPUs are a100"),
        (("run", "mine", "--topology", "v6e:4x4", "c.py"), "unknown option c.py"),
        (("run", "mine", "--topology"), "--topology needs a value"),
        (("run", "mine", "--slices", "two", "--", "c.py"), "--slices two"),
        (("run", "mine", "--secret", "a: b", "--", "c.py"), "'a: b' is not a valid Kubernetes name"),
        (("run", "mine", "--image", "a b", "--", "c.py"), "'a b' is not a valid image name"),
    ],
)  # fmt: skip
def test_bad_input_ends_with_2_and_says_what_was_expected(cluster, words, expected):
    status, out, err = cluster.run(*words)
    assert status == 2 and expected in err and not out and not cluster.calls(), err
