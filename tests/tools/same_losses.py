"""Do two commits compute the same losses? `python -m tests.tools.same_losses BASE [HEAD]`, from the repository's root.

Each commit is checked out beside the other and trains the same runs on this machine, one after the other: five steps of
the quickstart, of two processes, of a reward model, and of a layout over eight devices. Losses and gradient norms are
compared bit by bit; with --tolerance, to that relative difference. Exit status 1 where any differs.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
STEPS = 5
COMPARED = ("loss", "grad_norm", "accuracy", "entropy", "tokens", "target_tokens")
CONFIG = "configs/quickstart.py"
SHORT = ("--train.steps", STEPS, "--train.tensorboard", "False", "--data.eval")

LLAMA = {
    "model_type": "llama",
    "vocab_size": 49152,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
"""A small decoder that takes SmolLM2's tokenizer; its weights are drawn by train.seed."""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def inputs(folder: Path) -> None:
    """Two models without weights, and preference pairs."""
    for name, kind, more in (
        ("small", "LlamaForCausalLM", {}),
        ("reward", "LlamaForSequenceClassification", {"num_labels": 1, "pad_token_id": 2}),
    ):
        (folder / name).mkdir()
        config = {"architectures": [kind], **LLAMA, **more}
        (folder / name / "config.json").write_text(json.dumps(config), encoding="utf-8")
    rows = ({"prompt": f"Say {i}.", "chosen": f"It is {i}, " * (i % 3 + 1), "rejected": "No."} for i in range(64))
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def small(folder: Path, name: str) -> tuple[str, ...]:
    tokenizer = ".cache/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    return ("--model.path", str(folder / name), "--model.weights", "random", "--data.tokenizer", tokenizer)


def cases(folder: Path) -> dict[str, list[list[object]]]:
    """Name -> the options of each process of a run."""
    port = free_port()
    together = ["--distributed.processes", 2, "--distributed.coordinator", f"127.0.0.1:{port}"]
    return {
        "quickstart": [[]],
        "two processes": [
            [*small(folder, "small"), *together, "--distributed.process-id", i, "--distributed.cpu-devices", 4]
            for i in range(2)
        ],
        "reward": [
            [
                *small(folder, "reward"),
                *("--train.objective", "reward", "--data.train", str(folder / "pairs.jsonl")),
                *("--data.chat-template", "generic"),
            ]
        ],
        "eight devices": [
            [
                *small(folder, "small"),
                *("--distributed.cpu-devices", 8, "--mesh.data", 2, "--mesh.fsdp", 2, "--mesh.tensor", 2),
                *("--train.accumulation", 2, "--model.remat", "full"),
            ]
        ],
    }


def losses(checkout: Path, folder: Path, name: str, processes: list[list[object]]) -> list[dict[str, float]]:
    """The rows of metrics.jsonl of one run by the code in `checkout`."""
    workdir = folder / f"{checkout.name}-{name.replace(' ', '-')}"
    environment = {**os.environ, "PYTHONPATH": str(checkout), "JAX_PLATFORMS": "cpu"}
    started = []
    for number, options in enumerate(processes):
        command = [sys.executable, "-m", "sft_jax", "train", CONFIG, "--workdir", workdir, *SHORT, *options]
        log = (folder / f"{workdir.name}-{number}.log").open("w", encoding="utf-8")
        started.append(subprocess.Popen([*map(str, command)], cwd=checkout, env=environment, stdout=log, stderr=log))
    for number, process in enumerate(started):
        if process.wait():
            said = (folder / f"{workdir.name}-{number}.log").read_text(encoding="utf-8")
            raise SystemExit(f"{checkout.name}, {name}, process {number}: exit status {process.returncode}\n{said}")
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{key: row[key] for key in COMPARED if key in row} for row in rows]


def compare(name: str, base: list[dict[str, float]], head: list[dict[str, float]], tolerance: float) -> bool:
    """Print the two side by side; whether they are the same."""
    same, worst = len(base) == len(head) == STEPS, 0.0
    for one, other in zip(base, head, strict=False):
        for key in one:
            worst = max(worst, abs(one[key] - other[key]) / max(abs(one[key]), 1e-30))
    same = same and worst <= tolerance
    shown = "  ".join(f"{row['loss']:.8g}/{row['grad_norm']:.8g}" for row in head)
    print(f"{'same     ' if same else 'DIFFERENT'}  {name:14}  relative difference {worst:.3g}  (loss/norm: {shown})")
    return same


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("base")
    parser.add_argument("head", nargs="?", default="HEAD")
    parser.add_argument("--tolerance", type=float, default=0.0, help="relative; 0 asks for the same bits")
    parser.add_argument("--only", nargs="*", help="names of cases")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder, checkouts = Path(temporary), []
        inputs(folder)
        for name, commit in (("base", options.base), ("head", options.head)):
            checkout = folder / name
            checkout.mkdir()
            archive = subprocess.run(["git", "archive", commit], cwd=ROOT, check=True, capture_output=True)
            subprocess.run(["tar", "-x"], cwd=checkout, input=archive.stdout, check=True)
            (checkout / ".cache").symlink_to(ROOT / ".cache")
            checkouts.append(checkout)
        same = True
        for name, processes in cases(folder).items():
            if not options.only or name in options.only:
                found = [losses(checkout, folder, name, processes) for checkout in checkouts]
                same &= compare(name, *found, options.tolerance)
    sys.exit(not same)


if __name__ == "__main__":
    main()
