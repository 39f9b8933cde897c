"""launch/gke: what the JobSets that run.sh makes mean, to Kubernetes, to JobSet, to JAX in their pods, and to xpk."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
GKE = ROOT / "launch" / "gke"
TEMPLATES = [GKE / "tpu.yaml", GKE / "gpu.yaml"]
WORDS = {
    "a slice": ("--topology", "v6e:2x4"),
    "two slices": (
        "--topology", "v5p:2x2x2", "--slices", "2", "--spot", "--secret", "hf", "--queue", "q", "--host-network"
    ),
    "gpu nodes": ("--gpu", "h100", "--nodes", "2", "--spot", "--service-account", "trainer"),
}  # fmt: skip


def job(jobset: dict) -> dict:
    [replicated] = jobset["spec"]["replicatedJobs"]
    return replicated["template"]["spec"]


def pod(jobset: dict) -> dict:
    return job(jobset)["template"]["spec"]


def container(jobset: dict) -> dict:
    [main] = pod(jobset)["containers"]
    return main


# --- machines ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "accelerator", "hosts", "chips", "devices"),
    [
        ("v4:2x2x4", "tpu-v4-podslice", 4, 4, 16),
        ("v4:8x4x4", "tpu-v4-podslice", 32, 4, 128),
        ("v5e:1x1", "tpu-v5-lite-podslice", 1, 1, 1),
        ("v5e:2x4", "tpu-v5-lite-podslice", 2, 4, 8),
        ("v5e:2x4 --per-host 8", "tpu-v5-lite-podslice", 1, 8, 8),
        ("v5p:8x8x12 --slices 2", "tpu-v5p-slice", 192, 4, 1536),
        ("v6e:16x16", "tpu-v6e-slice", 64, 4, 256),
        ("tpu7x:2x2x2", "tpu7x", 2, 4, 16),  # two devices a chip
    ],
)
def test_a_topology_is_hosts_and_chips(rendered, words, accelerator, hosts, chips, devices):
    jobset = rendered("--topology", *words.split())
    assert job(jobset)["parallelism"] == job(jobset)["completions"] == hosts
    assert pod(jobset)["nodeSelector"]["cloud.google.com/gke-tpu-accelerator"] == accelerator
    assert pod(jobset)["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == words.split()[0].split(":")[1]
    resources = container(jobset)["resources"]
    assert resources["requests"] == resources["limits"] == {"google.com/tpu": chips}
    assert container(jobset)["args"][-2:] == ["--distributed.devices", str(devices)]


def test_gpu_nodes_are_hosts_of_eight_or_as_many_as_are_named(rendered):
    for words, accelerator, gpus in (("h200", "nvidia-h200-141gb", 8), ("a100 --per-host 4", "nvidia-tesla-a100", 4)):
        jobset = rendered("--nodes", "3", "--gpu", *words.split())
        assert job(jobset)["parallelism"] == job(jobset)["completions"] == 3
        assert pod(jobset)["nodeSelector"] == {"cloud.google.com/gke-accelerator": accelerator}
        resources = container(jobset)["resources"]
        assert resources["requests"] == resources["limits"] == {"nvidia.com/gpu": gpus}
        assert container(jobset)["args"][-2:] == ["--distributed.devices", str(3 * gpus)]


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_a_template_as_it_stands_is_what_run_makes_of_its_own_values(rendered, path):
    by_hand = yaml.safe_load(path.read_text())
    words = WORDS["gpu nodes"][:4] if path.name == "gpu.yaml" else ("--topology", "v6e:4x4")
    arguments = container(by_hand)["args"][1:4]
    image = container(by_hand)["image"]
    assert "PROJECT" in image  # no image has capitals: nobody runs an example by accident
    made = rendered(*words, "--image", "example.com/i", arguments=arguments)
    assert made == yaml.safe_load(path.read_text().replace(image, "example.com/i"))


def test_options_are_taken_in_where_they_are_given(rendered):
    two, gpus = rendered(*WORDS["two slices"]), rendered(*WORDS["gpu nodes"])
    for jobset in (two, gpus):
        assert pod(jobset)["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
        assert {"key": "cloud.google.com/gke-spot", "operator": "Exists"} in pod(jobset)["tolerations"]
    assert pod(two)["hostNetwork"] is True and pod(two)["dnsPolicy"] == "ClusterFirstWithHostNet"
    assert pod(gpus)["serviceAccountName"] == "trainer"
    plain = rendered(*WORDS["a slice"])
    assert not {"hostNetwork", "serviceAccountName"} & set(pod(plain)) and not {"env", "envFrom"} & set(
        container(plain)
    )
    assert two["spec"]["replicatedJobs"][0]["replicas"] == 2


# --- failures: the documented rules of podFailurePolicy (Job) and failurePolicy (JobSet) ------------------------------


def job_fails(spec: dict, ended: list[dict]) -> str | None:
    """The reason with which a Job fails whose pods ended so: {"code": exit status, "conditions": [those that hold]}."""

    def matches(rule, one):
        if "onExitCodes" in rule:
            within = one["code"] in rule["onExitCodes"]["values"]
            return one["code"] != 0 and within == (rule["onExitCodes"]["operator"] == "In")
        return any(each["type"] in one.get("conditions", []) for each in rule["onPodConditions"])

    failures = [one for one in ended if one["code"] != 0]
    for one in failures:
        rule = next((rule for rule in spec["podFailurePolicy"]["rules"] if matches(rule, one)), None)
        if rule is not None:
            assert rule["action"] == "FailJob"
            return "PodFailurePolicy"
    return "BackoffLimitExceeded" if len(failures) > spec["backoffLimit"] else None


def jobset_does(spec: dict, reasons: list[str | None], restarts: int) -> str:
    failed = [reason for reason in reasons if reason is not None]
    policy = spec["failurePolicy"]
    rule = next((rule for rule in policy["rules"] if set(rule["onJobFailureReasons"]) & set(failed)), None)
    action = rule["action"] if rule else "RestartJobSet"
    return "FailJobSet" if action == "RestartJobSet" and restarts >= policy["maxRestarts"] else action


@pytest.mark.parametrize("words", [WORDS["two slices"], WORDS["gpu nodes"]], ids=["tpu", "gpu"])
@pytest.mark.parametrize(
    ("ends", "expected"),
    [
        ([[{"code": 42}, {"code": 42}], [{"code": 42}]], "RestartJobSet"),
        ([[{"code": 1}, {"code": 1}]], "FailJobSet"),
        ([[{"code": 2}]], "FailJobSet"),
        ([[{"code": 137, "conditions": ["Ready", "DisruptionTarget"]}]], "RestartJobSet"),
        ([[{"code": 1, "conditions": ["DisruptionTarget"]}]], "RestartJobSet"),  # preempted while it failed to save
        ([[{"code": 137}]], "RestartJobSet"),  # killed: its memory, or SIGKILL after the grace period
        ([[{"code": 134}]], "RestartJobSet"),  # JAX aborts where it loses the coordinator
        ([[{"code": 42}], [{"code": 2}]], "FailJobSet"),  # one slice had bad input, the other was told to leave
        ([[{"code": 0}, {"code": 0}], [{"code": 42}]], "RestartJobSet"),
    ],
)
def test_42_and_a_lost_node_start_all_again_and_1_and_2_end_the_run(rendered, words, ends, expected):
    jobset = rendered(*words)
    reasons = [job_fails(job(jobset), pods) for pods in ends]
    assert jobset_does(jobset["spec"], reasons, restarts=0) == expected
    assert pod(jobset)["restartPolicy"] == "Never"  # podFailurePolicy asks for it
    policy = job(jobset)["podFailurePolicy"]["rules"][1]["onExitCodes"]
    assert policy["containerName"] == container(jobset)["name"]


def test_starting_again_has_an_end(rendered):
    jobset = rendered(*WORDS["a slice"], "--restarts", "7")
    assert [jobset_does(jobset["spec"], ["PodFailurePolicy"], made) for made in (6, 7)] == [
        "RestartJobSet",
        "FailJobSet",
    ]
    actions = {rule["action"] for rule in jobset["spec"]["failurePolicy"]["rules"]}
    assert "RestartJobSetAndIgnoreMaxRestarts" not in actions


# --- JAX in the pods --------------------------------------------------------------------------------------------------

# What `sft-jax train` does in a pod until it joins the others: the network is the names that the cluster would know,
# and a metadata server that knows of no TPU VM.
STARTS = """
import json, os, socket, sys
from jax._src.clusters import cloud_tpu_cluster
from sft_jax.cli.arguments import resolve_config
from sft_jax.distributed import start
pods, names = json.load(sys.stdin)
def lookup(name):
    if name not in names: raise socket.gaierror(name)
    return "10.0.0.1"
socket.gethostbyname = lookup
cloud_tpu_cluster.get_metadata = lambda key: ("no such attribute", 404)
start.check_tpu_is_free = lambda: None
start._check_devices = lambda config: None
joined = []
start._join = lambda members, config, leave: joined.append([*members[:3], config.devices, config.timeout_seconds])
for pod in pods:
    os.environ.update(pod["env"])
    assert pod["args"][0] == "train"
    start.start(resolve_config(pod["args"][1:], "sft-jax train").distributed)
    for name in pod["env"]: del os.environ[name]
print("joined", json.dumps(joined))
"""


def pods_of(jobset: dict) -> tuple[list[dict], list[str]]:
    """(arguments and environment of each pod as the cluster starts it, the pods' names in DNS)."""
    [replicated] = jobset["spec"]["replicatedJobs"]
    main, name, hosts = container(jobset), jobset["metadata"]["name"], job(jobset)["completions"]
    started, names = [], []
    for slice_ in range(replicated["replicas"]):
        inside = [f"{name}-{replicated['name']}-{slice_}-{host}.{name}" for host in range(hosts)]
        names += inside
        labels = {"metadata.labels['jobset.sigs.k8s.io/job-index']": str(slice_)}
        for host in range(hosts):
            env = {"JOB_COMPLETION_INDEX": str(host), "KUBERNETES_SERVICE_HOST": "10.1.0.1"}
            for one in main.get("env", []):
                env[one["name"]] = one["value"] if "value" in one else labels[one["valueFrom"]["fieldRef"]["fieldPath"]]
            if "google.com/tpu" in main["resources"]["limits"]:  # GKE's webhook
                env |= {"TPU_WORKER_ID": str(host), "TPU_WORKER_HOSTNAMES": ",".join(inside)}
            started.append({"args": [expanded(word, env) for word in main["args"]], "env": env})
    return started, names


def expanded(word: str, env: dict) -> str:
    """As Kubernetes starts it: `$$` is a $, and `$(NAME)` the variable's value."""
    return re.sub(r"\$\$|\$\((\w+)\)", lambda found: env[found[1]] if found[1] else "$", word)


def joins(jobset: dict) -> list:
    # JAX takes a machine for one with TPUs when it has chips, or when it is told so.
    machine = {"JAX_FORCE_TPU_INIT": "1"} if "google.com/tpu" in container(jobset)["resources"]["limits"] else {}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", STARTS], input=json.dumps(pods_of(jobset)), cwd=ROOT,
        env={**os.environ, **machine}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.split("joined ")[1])


QUICK = ("configs/quickstart.py", "--workdir", "runs/gke")


@pytest.mark.parametrize(
    ("words", "coordinator", "processes", "devices"),
    [
        (WORDS["a slice"], "mine-slice-0-0.mine:8482", 2, 8),
        (WORDS["two slices"], "mine-slice-0-0.mine:8482", 4, 16),
        (WORDS["gpu nodes"], "mine-slice-0-0.mine:9876", 2, 16),
    ],
    ids=list(WORDS),
)
def test_the_processes_of_the_pods_find_each_other(rendered, words, coordinator, processes, devices):
    joined = joins(rendered(*words, arguments=QUICK))
    assert joined == [[coordinator, processes, number, devices, 21600] for number in range(processes)]


def test_gpu_pods_wait_until_process_0_has_a_name(rendered, tmp_path):
    jobset = rendered(*WORDS["gpu nodes"])
    [wait] = pod(jobset)["initContainers"]
    for name, text in {"getent": 'echo "$2" >>asked; [ "$(wc -l <asked)" -ge 3 ]', "sleep": ":"}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    environment = {one["name"]: one["value"] for one in wait["env"]} | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    assert subprocess.run(wait["command"], cwd=tmp_path, env=environment, timeout=20).returncode == 0
    assert (tmp_path / "asked").read_text() == 3 * "mine-slice-0-0.mine\n"


# --- other people's programs ------------------------------------------------------------------------------------------

# Reads a JobSet by the published schema and writes it again: an unknown field is lost on the way.
SCHEMA = """
import json, sys
from kubeflow_trainer_api.models import JobsetV1alpha2JobSet
print(json.dumps(JobsetV1alpha2JobSet.from_json(sys.stdin.read()).to_dict()))
"""


def lost(given, read, where="") -> list[str]:
    """Where `read` has not what `given` has; quantities may be strings there."""
    if isinstance(given, dict) and isinstance(read, dict):
        return [each for key in given for each in lost(given[key], read.get(key), f"{where}.{key}")]
    if isinstance(given, list) and isinstance(read, list):
        return [each for i, one in enumerate(given) for each in lost(one, read[i], f"{where}[{i}]")]
    return [] if read in (given, str(given)) else [where]


def with_an_unknown_field(jobset: dict) -> dict:
    wrong = json.loads(json.dumps(jobset))
    pod(wrong)["unheardOf"] = 1
    return wrong


@pytest.mark.slow
@pytest.mark.parametrize("words", WORDS.values(), ids=list(WORDS))
def test_the_jobsets_are_in_the_published_schema(rendered, words):
    python = ROOT / ".cache" / "launchers" / "bin" / "python"

    def read(jobset: dict) -> dict:
        done = subprocess.run([python, "-c", SCHEMA], input=json.dumps(jobset), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    jobset = rendered(*words)
    assert lost(jobset, read(jobset)) == []
    wrong = with_an_unknown_field(jobset)
    wrong["spec"]["failurePolicy"]["unheardOf"] = 1
    assert len(lost(wrong, read(wrong))) == 2


@pytest.mark.slow
@pytest.mark.parametrize("words", WORDS.values(), ids=list(WORDS))
def test_kubectl_reads_the_jobs_without_loss(rendered, tmp_path, words):
    """kubectl decodes a Job with the types of Kubernetes: unknown fields are lost, and wrong types refused."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")

    def read(spec: dict) -> dict:
        head = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "mine-slice-0"}}
        (tmp_path / "job.json").write_text(json.dumps({**head, "spec": spec}))
        done = subprocess.run(
            ["kubectl", "set", "env", "--local", "-f", tmp_path / "job.json", "read=yes", "-o", "json"],
            env={**os.environ, "HOME": str(tmp_path)}, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)["spec"]

    jobset = rendered(*words)
    assert lost(job(jobset), read(job(jobset))) == []
    wrong = job(with_an_unknown_field(jobset))
    assert lost(wrong, read(wrong)) == [".template.spec.unheardOf"]


@pytest.mark.slow
def test_the_line_for_xpk_makes_the_same_jobset(rendered, tmp_path):
    xpk = ROOT / ".cache" / "xpk" / "bin" / "xpk"
    if not xpk.exists():
        pytest.skip("xpk is not installed: make slow")
    lines = [
        " ".join(line.replace("\\\n", " ").split())
        for path in (GKE / "tpu.yaml", ROOT / "docs" / "launch.md")
        for line in re.findall(r"xpk workload create(?:.*\\\n)*.*", re.sub("(?m)^# *", "", path.read_text()))
    ]
    line = lines[0]
    assert set(lines) == {line}  # the comment and the documentation say the same
    done = subprocess.run(
        [xpk, *shlex.split(line)[1:], "--dry-run", "--skip-validation", "--project", "p", "--zone", "us-east5-b",
         "--output-manifest-file", tmp_path / "made.yaml"],
        cwd=tmp_path, env={**os.environ, "HOME": str(tmp_path)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    theirs, arguments = yaml.safe_load((tmp_path / "made.yaml").read_text()), shlex.split(line)
    ours = rendered(
        "--topology", "v6e:4x4", "--slices", "2", arguments=("configs/llama31_8b.py", "--workdir", "gs://BUCKET/runs/a")
    )
    for key in ("completions", "parallelism", "backoffLimit"):
        assert job(theirs)[key] == job(ours)[key]
    assert theirs["spec"]["replicatedJobs"][0]["replicas"] == 2
    assert theirs["spec"]["failurePolicy"]["maxRestarts"] == ours["spec"]["failurePolicy"]["maxRestarts"]
    key = "alpha.jobset.sigs.k8s.io/exclusive-topology"
    assert theirs["metadata"]["annotations"][key] == ours["metadata"]["annotations"][key]
    assert pod(theirs)["terminationGracePeriodSeconds"] == pod(ours)["terminationGracePeriodSeconds"]
    assert pod(ours)["nodeSelector"].items() <= pod(theirs)["nodeSelector"].items()
    assert container(theirs)["resources"]["limits"] == container(ours)["resources"]["limits"]
    command = arguments[arguments.index("--command") + 1]
    assert (
        shlex.split(command) == ["exec", "sft-jax", *container(ours)["args"]]
        and command in container(theirs)["command"][2]
    )
    for code, ends in ((42, False), (1, True), (2, True), (137, False)):
        [rule] = job(theirs)["podFailurePolicy"]["rules"]
        assert rule["action"] == "FailJob" and rule["onExitCodes"]["operator"] == "NotIn"
        assert (code not in rule["onExitCodes"]["values"]) == ends
