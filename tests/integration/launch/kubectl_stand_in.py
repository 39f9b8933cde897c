"""A stand-in for kubectl with a cluster that has JobSet: it takes only the commands and options of kubectl.json,
records each call, and plays the lives of a JobSet from a script. `jobset` and `pod` make the objects as such a cluster
shows them.

The script is PLAY/play.json: {"lives": [...], "errors": {command: [text, ...]}}. A life is a list of stages, one for
each time that the JobSet is asked for; the last one stays. A stage has

  restarts, completed, failed (the reason), suspend, labels, deleted     what the JobSet shows
  pods      phase, slice, host, code (exit code), waiting (reason), unschedulable (message) of each
  log       what worker 0 has written; the stage is over when it has been followed to its end
  cut       following its log breaks off, and the stage goes on
  lasts     worker 0 runs until it is told to stop, or the file PLAY/end is there

`errors` are answered one after the other before a command does something. PLAY/calls.jsonl has every call,
PLAY/created-N what the N-th creation was given, PLAY/now.json where the lives are.
"""

import json
import os
import re
import sys
import time
from pathlib import Path

PHASES = {"Pending", "Running", "Succeeded", "Failed"}


def jobset(stage: dict, name: str, annotations: dict) -> dict:
    kinds = {"Completed": "AllJobsCompleted" if stage.get("completed") else None, "Failed": stage.get("failed")}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {
            "name": name,
            "uid": f"uid-of-{name}",
            "labels": stage.get("labels", {}),
            "annotations": annotations,
            **({"deletionTimestamp": "2026-11-27T00:00:00Z"} if stage.get("deleted") else {}),
        },
        "spec": {"suspend": stage.get("suspend", False)},
        "status": {
            "restarts": stage.get("restarts", 0),
            "conditions": [
                {"type": kind, "status": "True", "reason": reason, "message": "jobset ..."}
                for kind, reason in kinds.items()
                if reason
            ],
        },
    }


def pod(stage: dict, name: str, shown: dict) -> dict:
    slice_, host = str(shown.get("slice", 0)), str(shown.get("host", 0))
    assert shown["phase"] in PHASES
    scheduled = {"type": "PodScheduled", "status": "True"}
    if "unschedulable" in shown:
        scheduled |= {"status": "False", "reason": "Unschedulable", "message": shown["unschedulable"]}
    state = {"running": {}} if shown["phase"] == "Running" else {}
    if "code" in shown:
        state = {"terminated": {"exitCode": shown["code"]}}
    if "waiting" in shown:
        state = {"waiting": {"reason": shown["waiting"]}}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": f"{name}-slice-{slice_}-{host}-r{stage.get('restarts', 0)}",
            "labels": {"jobset.sigs.k8s.io/jobset-name": name, "jobset.sigs.k8s.io/job-index": slice_},
            "annotations": {"batch.kubernetes.io/job-completion-index": host},
        },
        "spec": {"containers": [{"name": "sft-jax"}]},
        "status": {
            "phase": shown["phase"],
            "conditions": [{"type": "Initialized", "status": "True", "message": "x"}, scheduled],
            "containerStatuses": [{"name": "sft-jax", "state": state}] if state else [],
        },
    }


# --- the part of kubectl's jsonpath that run.sh uses ------------------------------------------------------------------


def value(path: str, thing) -> str:
    found = [thing]
    for step in re.findall(r'\[\?\(@\.type=="(\w+)"\)\]|(\[\*\])|\.((?:\\\.|[^.\[\]])+)', path):
        kind, every, name = step
        if every:
            found = [item for each in found for item in each]
        elif kind:
            found = [item for each in found for item in each if item["type"] == kind]
        else:
            name = name.replace(r"\.", ".")
            found = [each[name] for each in found if name in each]
    return " ".join(str(each).lower() if isinstance(each, bool) else str(each) for each in found)


def rendered(template: str, thing) -> str:
    ranged = re.fullmatch(r"\{range (.+?)\[\*\]\}(.*)\{end\}", template, re.DOTALL)
    if ranged:
        return "".join(rendered(ranged[2], item) for item in thing[ranged[1].removeprefix(".")])
    return re.sub(r'\{"\\n"\}|\{(\..+?)\}', lambda m: value(m[1], thing) if m[1] else "\n", template)


# --- commands ---------------------------------------------------------------------------------------------------------


def refuse(why: str) -> None:
    print(f"error: {why}", file=sys.stderr)
    sys.exit(1)


def parse(words: list[str]) -> tuple[str, list[str], dict[str, str]]:
    """(command, positional arguments, options), by the table."""
    known = json.loads(Path(__file__).with_name("kubectl.json").read_text())
    if words[0] not in known["commands"]:
        refuse(f'unknown command "{words[0]}" for "kubectl"')
    options = {**known["commands"][words[0]], **known["every"]}
    place, positional, given = 1, [], {}
    while place < len(words):
        name, equals, text = words[place].lstrip("-").partition("=")
        if not words[place].startswith("-"):
            positional.append(words[place])
        elif name not in options:
            refuse(f"unknown flag: {words[place]}")
        elif equals or options[name] == "=":
            given[name] = text
        else:
            place += 1
            given[name] = words[place]
        place += 1
    return words[0], positional, given


class Cluster:
    """What is played now."""

    def __init__(self, play: Path):
        self.play, self.script = play, json.loads((play / "play.json").read_text())
        now = play / "now.json"
        fresh = {"life": -1, "exists": False, "stage": -1, "annotations": {}, "told": False, "leaving": 0, "errors": {}}
        self.now = json.loads(now.read_text()) if now.exists() else fresh

    def save(self) -> None:
        (self.play / "now.json").write_text(json.dumps(self.now))

    @property
    def stage(self) -> dict:
        life = self.script["lives"][min(self.now["life"], len(self.script["lives"]) - 1)]
        return life[min(max(self.now["stage"], 0), len(life) - 1)]

    def error(self, command: str) -> None:
        texts, said = self.script.get("errors", {}).get(command, []), self.now["errors"].get(command, 0)
        if said < len(texts):
            self.now["errors"][command] = said + 1
            self.save()
            print(texts[said], file=sys.stderr)
            sys.exit(1)

    def pods(self, name: str) -> list[dict]:
        if not self.now["exists"]:
            return []
        if not self.now["told"]:
            return [pod(self.stage, name, shown) for shown in self.stage.get("pods", [])]
        self.now["leaving"] += 1  # they save for two looks, and are gone
        return [pod(self.stage, name, shown) for shown in self.stage.get("pods", [])] if self.now["leaving"] < 3 else []


def main() -> None:
    command, positional, options = parse(sys.argv[1:])
    play = Path(os.environ["PLAY"])
    with (play / "calls.jsonl").open("a") as file:
        file.write(json.dumps([command, positional, options]) + "\n")
    cluster = Cluster(play)
    cluster.error(" ".join([command, *positional[:1]]) if command == "get" else command)
    act(cluster, command, positional, options)
    cluster.save()


def act(cluster: Cluster, command, positional, options) -> None:
    now = cluster.now
    if command == "create":
        if now["exists"]:
            refuse('from server (AlreadyExists): jobsets.jobset.x-k8s.io "mine" already exists')
        now.update(life=now["life"] + 1, exists=True, stage=-1, annotations={}, told=False, leaving=0)
        (cluster.play / f"created-{now['life']}").write_text(Path(options["f"]).read_text())
    elif command == "get" and positional == ["pods"]:
        name = options["l"].split("=")[1]
        print(rendered(options["o"].removeprefix("jsonpath="), {"items": cluster.pods(name)}), end="")
    elif command == "get" and positional == ["workloads"]:
        print("workload.kueue.x-k8s.io/jobset-mine-1a2b3")
    elif command == "get":
        if now["exists"]:
            lasts = now["stage"] >= 0 and cluster.stage.get("lasts") and not (cluster.play / "end").exists()
            now["stage"] += 0 if now.pop("over", False) or lasts else 1
            shown = jobset(
                cluster.stage | ({"suspend": True} if now["told"] else {}), positional[1], now["annotations"]
            )
            print(rendered(options["o"].removeprefix("jsonpath="), shown), end="")
        elif "ignore-not-found" not in options:
            refuse("from server (NotFound)")
    elif command == "delete":
        now["exists"] = False
    elif command == "annotate":
        key, text = positional[2].split("=")
        now["annotations"][key] = text
    elif command == "patch":
        patch = json.loads(options["p"])["spec"]
        assert patch == ({"suspend": True} if positional[0] == "jobset" else {"active": False})
        now["told"] = True
    elif command == "logs":
        print(cluster.stage.get("log", ""), end="", flush=True)
        if "follow" in options:
            end = time.monotonic() + 30
            while cluster.stage.get("lasts") and time.monotonic() < end and not (cluster.play / "end").exists():
                time.sleep(0.05)
                cluster.now = Cluster(cluster.play).now
                if cluster.now["told"]:
                    return
            if not cluster.stage.get("cut"):
                cluster.now.update(stage=cluster.now["stage"] + 1, over=True)


if __name__ == "__main__":
    main()
