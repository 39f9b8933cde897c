"""launch/gke/run.sh with the real kubectl, against a server that answers as a cluster with JobSet would."""

import importlib.util
import json
import os
import shutil
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlparse

import pytest

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = ROOT / "launch" / "gke" / "run.sh"
_spec = importlib.util.spec_from_file_location("kubectl_stand_in", Path(__file__).with_name("kubectl_stand_in.py"))
assert _spec is not None and _spec.loader is not None
stand_in = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(stand_in)

VERBS = ["get", "list", "watch", "create", "delete", "patch"]
JOBSETS = "/apis/jobset.x-k8s.io/v1alpha2/namespaces/ml/jobsets"
PODS = "/api/v1/namespaces/ml/pods"
GROUP = {"groupVersion": "jobset.x-k8s.io/v1alpha2", "version": "v1alpha2"}
DISCOVERY = {
    "/api": {"kind": "APIVersions", "versions": ["v1"]},
    "/apis": {
        "kind": "APIGroupList",
        "groups": [{"name": "jobset.x-k8s.io", "versions": [GROUP], "preferredVersion": GROUP}],
    },
    "/api/v1": {
        "kind": "APIResourceList",
        "groupVersion": "v1",
        "resources": [
            {"name": "pods", "singularName": "pod", "namespaced": True, "kind": "Pod", "verbs": VERBS},
            {"name": "pods/log", "singularName": "", "namespaced": True, "kind": "Pod", "verbs": ["get"]},
        ],
    },
    "/apis/jobset.x-k8s.io/v1alpha2": {
        "kind": "APIResourceList",
        "groupVersion": "jobset.x-k8s.io/v1alpha2",
        "resources": [
            {"name": "jobsets", "singularName": "jobset", "namespaced": True, "kind": "JobSet", "verbs": VERBS}
        ],
    },
}
NOTHING = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}


class Cluster(ThreadingHTTPServer):
    """Plays one life of a JobSet after the other, a stage for each time that it is asked for (kubectl_stand_in.py)."""

    def __init__(self, *lives: list[dict]):
        super().__init__(("127.0.0.1", 0), Handler)
        self.lives, self.stages, self.stage = list(lives), [], {}
        self.there, self.annotations, self.said, self.over = False, {}, [], False
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def step(self) -> None:
        if self.stages and not self.over:
            self.stage = self.stages.pop(0)
        self.over = False

    def jobset(self) -> dict:
        return stand_in.jobset(self.stage, "mine", self.annotations)

    def pods(self) -> list[dict]:
        return [stand_in.pod(self.stage, "mine", shown) for shown in self.stage.get("pods", []) if self.there]


class Handler(BaseHTTPRequestHandler):
    server: Cluster

    def log_message(self, format, *args) -> None: ...

    def answer(self, body, code=200) -> None:
        text = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "text/plain" if isinstance(body, str) else "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def body(self) -> dict:
        return json.loads(self.rfile.read(int(self.headers["Content-Length"])))

    def do_GET(self) -> None:
        path, query, cluster = urlparse(self.path).path, parse_qs(urlparse(self.path).query), self.server
        if path in DISCOVERY:
            self.answer(DISCOVERY[path])
        elif path == f"{JOBSETS}/mine" and cluster.there:
            cluster.step()
            self.answer(cluster.jobset())
        elif path == JOBSETS:
            self.answer({"kind": "JobSetList", "apiVersion": "jobset.x-k8s.io/v1alpha2", "metadata": {}, "items": []})
        elif path == PODS:
            cluster.said.append(("pods", query["labelSelector"][0]))
            self.answer({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": cluster.pods()})
        elif path.endswith("/log"):
            cluster.said.append(("log", query))
            self.answer(cluster.stage.get("log", ""))
            if "follow" in query:
                cluster.step()
                cluster.over = True
        elif path.startswith(PODS):
            self.answer(next(pod for pod in cluster.pods() if pod["metadata"]["name"] == path.rsplit("/")[-1]))
        else:
            self.answer(NOTHING, 404)

    def do_POST(self) -> None:
        made = self.body()
        self.server.there, self.server.annotations = True, {}
        self.server.stages = list(self.server.lives.pop(0))
        self.server.stage = self.server.stages[0]
        self.server.said.append(("created", made))
        self.answer(made, 201)

    def do_DELETE(self) -> None:
        self.server.said.append(("deleted", self.body()))
        self.server.there = False
        self.answer({"kind": "Status", "apiVersion": "v1", "status": "Success"})

    def do_PATCH(self) -> None:
        patch = self.body()
        self.server.said.append(("patched", patch))
        self.server.annotations |= patch.get("metadata", {}).get("annotations", {})
        if patch.get("spec", {}).get("suspend"):
            self.server.stage, self.server.stages = {"suspend": True}, []
        self.answer(self.server.jobset())


RUNS = {"pods": [{"phase": "Running"}, {"phase": "Running", "host": 1}], "log": "worker 0 trains\n"}
RUN = (
    "run",
    "mine",
    "--topology",
    "v6e:2x4",
    "--image",
    "example.com/i",
    "--namespace",
    "ml",
    "--",
    "c.py",
    "--workdir",
)


@pytest.fixture
def launched(tmp_path):
    """(lives) -> (the cluster, words -> status, output and errors of run.sh there)."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is not installed")
    clusters = []

    def start(*lives):
        cluster = Cluster(*lives)
        clusters.append(cluster)
        (tmp_path / "config").write_text(
            f"""{{apiVersion: v1, kind: Config, current-context: c, contexts: [{{name: c, context: {{cluster: c}}}}],
            clusters: [{{name: c, cluster: {{server: "http://127.0.0.1:{cluster.server_port}"}}}}]}}"""
        )
        (tmp_path / "bin").mkdir()
        # The server has no OpenAPI, by which kubectl would look for unknown fields before it creates something.
        (tmp_path / "bin" / "kubectl").write_text(
            f'#!/bin/sh\nif [ "$1" = create ]; then exec "{kubectl}" "$@" --validate=false; fi\nexec "{kubectl}" "$@"\n'
        )
        (tmp_path / "bin" / "kubectl").chmod(0o755)
        environment = {
            **os.environ, "KUBECONFIG": str(tmp_path / "config"), "HOME": str(tmp_path), "SFT_JAX_POLL_SECONDS": "0",
            "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        }  # fmt: skip

        def run(*words):
            done = subprocess.run([SCRIPT, *words], env=environment, capture_output=True, text=True, timeout=100)
            return done.returncode, done.stdout, done.stderr

        return cluster, run

    yield start
    for cluster in clusters:
        cluster.shutdown()
        cluster.server_close()


@pytest.mark.slow
def test_kubectl_does_what_run_sh_asks_of_it(launched):
    waits = {"pods": [{"phase": "Pending", "unschedulable": "0/3 nodes: 3 Insufficient google.com/tpu."}]}
    ends = {
        "failed": "FailJobSetFailurePolicyAction",
        "pods": [{"phase": "Failed", "code": 42}, {"phase": "Failed", "code": 2}],
    }
    done = {"completed": True, "restarts": 1, "pods": [{"phase": "Succeeded", "code": 0}]}
    cluster, run = launched([{}, waits, RUNS, ends], [RUNS, {"restarts": 1}, done])
    assert run("status", "mine", "--namespace", "ml")[:2] == (1, "mine: does not exist\n")
    status, out, err = run(*RUN, "$HOME {}")
    assert status == 2 and out == "worker 0 trains\n", err
    assert "is not scheduled: Unschedulable: 0/3 nodes: 3 Insufficient" in err and "pods: 2 running" in err, err
    [made] = [body for said, body in cluster.said if said == "created"]
    [main] = made["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"]
    assert main["args"][1:4] == ["c.py", "--workdir", "$$HOME {}"]
    status, _, err = run(*RUN, "a")
    assert status == 0 and "failed (FailJobSetFailurePolicyAction); restarting it" in err and "start 2" in err, err
    [deleted] = [body for said, body in cluster.said if said == "deleted"]
    assert deleted["propagationPolicy"] == "Foreground"
    assert {selector for said, selector in cluster.said if said == "pods"} == {"jobset.sigs.k8s.io/jobset-name=mine"}
    assert [query["follow"] for said, query in cluster.said if said == "log"] == 3 * [["true"]]  # one a start and run


@pytest.mark.slow
def test_kubectl_stops_logs_and_deletes(launched):
    cluster, run = launched([RUNS])
    cluster.there, cluster.stage = True, RUNS
    status, out, err = run("status", "mine", "--namespace", "ml")
    assert status == 0 and "mine: start 1, pods: 2 running\n" in out and "mine-slice-0-1-r0" in out, err
    assert "worker 0 trains" in run("logs", "mine", "--namespace", "ml", "--all")[1]
    assert "worker 0 trains" in run("logs", "mine", "--namespace", "ml")[1]
    status, _, err = run("stop", "mine", "--namespace", "ml")
    assert status == 0 and "all pods have ended" in err, err
    annotated, suspended = [body for said, body in cluster.said if said == "patched"]
    assert "sft-jax/stopped" in annotated["metadata"]["annotations"] and suspended == {"spec": {"suspend": True}}
    assert run("status", "mine", "--namespace", "ml")[1].startswith("mine: stopped by hand")
    assert run("delete", "mine", "--namespace", "ml")[0] == 0 and not cluster.there
