"""A stand-in for `gcloud compute tpus`: it takes only the commands and flags of gcloud.json, records each call, and
plays the lives of slices from a script; what is run on a worker is run here, in a home folder of the worker's own.

The script is PLAY/play.json: zone -> lives, in the order in which slices are created there. A life has

  states            what describe answers, one after the other; the last one stays
  create_error      creation fails with this text instead
  copy_fails        nothing can be copied to the workers
  lost_after        so many commands on workers succeed; then the slice is in the state `then`, and none does

PLAY/calls.jsonl has every call; PLAY/now.json where each zone is in its lives.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

PLAY = Path(os.environ["PLAY"])
WORKERS = 2


def refuse(why: str) -> None:
    print(f"ERROR: (gcloud) {why}", file=sys.stderr)
    sys.exit(2)


def parse(words: list[str]) -> tuple[str, list[str], dict[str, str]]:
    """(command, positional arguments, flags), by the table."""
    known = json.loads(Path(__file__).with_name("gcloud.json").read_text())
    if words[:2] != ["compute", "tpus"]:
        refuse(f"Invalid choice: {words[:2]}")
    command = " ".join(words[2:4])
    if command not in known["commands"]:
        refuse(f"Invalid choice: '{command}'")
    flags = {**known["commands"][command], **known["every"]}
    place, positional, given = 4, [], {}
    while place < len(words):
        word = words[place]
        if not word.startswith("--"):
            positional.append(word)
        elif word[2:] not in flags:
            refuse(f"unrecognized arguments: {word}")
        elif flags[word[2:]]:
            place += 1
            given[word[2:]] = words[place]
        else:
            given[word[2:]] = ""
        place += 1
    return command, positional, given


def main() -> None:
    command, positional, flags = parse(sys.argv[1:])
    with (PLAY / "calls.jsonl").open("a") as file:
        file.write(json.dumps([command, positional, flags]) + "\n")
    if "zone" not in flags:
        refuse("Error parsing [tpu]: zone is required")
    now_path, zone = PLAY / "now.json", flags["zone"]
    lives = json.loads((PLAY / "play.json").read_text())[zone]
    now = json.loads(now_path.read_text()) if now_path.exists() else {}
    here = now.setdefault(zone, {"life": -1, "exists": False, "described": 0, "commands": 0})
    life = lives[min(max(here["life"], 0), len(lives) - 1)]
    try:
        act(command, positional, flags, lives, here, life)
    finally:
        now_path.write_text(json.dumps(now))


def act(command, positional, flags, lives, here, life) -> None:
    verb = command.split()[1]
    if verb == "create":
        if here["exists"]:
            refuse("ALREADY_EXISTS: Resource already exists")
        here.update(life=here["life"] + 1, described=0, commands=0)
        life = lives[min(here["life"], len(lives) - 1)]
        if "create_error" in life:
            refuse(life["create_error"])
        here["exists"] = True
        shutil.rmtree(PLAY / "workers", ignore_errors=True)
        for worker in range(WORKERS):
            shutil.copytree(PLAY / "fresh", PLAY / "workers" / str(worker))
    elif not here["exists"]:
        print(f"ERROR: (gcloud) NOT_FOUND: Resource '{positional[0]}' was not found", file=sys.stderr)
        sys.exit(1)
    elif verb == "describe":
        lost = "lost_after" in life and here["commands"] > life["lost_after"]
        print(life["then"] if lost else life["states"][min(here["described"], len(life["states"]) - 1)])
        here["described"] += 1
    elif verb == "delete":
        here["exists"] = False
    else:
        here["commands"] += 1
        if here["commands"] > life.get("lost_after", 10**9):
            print("ERROR: ssh: connect to host port 22: Connection timed out", file=sys.stderr)
            sys.exit(255)
        on_workers(verb, positional, flags, life)


def on_workers(verb, positional, flags, life) -> None:
    workers = range(WORKERS) if flags.get("worker") == "all" else [int(flags["worker"])]
    for worker in workers:
        home = PLAY / "workers" / str(worker)
        if verb == "scp":
            if life.get("copy_fails"):
                sys.exit(1)
            for file in positional[:-1]:
                shutil.copy(file, home)
        else:
            environment = {**os.environ, "HOME": str(home), "WORKER": str(worker)}
            done = subprocess.run(["bash", "-c", flags["command"]], cwd=home, env=environment)
            if done.returncode:
                sys.exit(done.returncode)


main()
