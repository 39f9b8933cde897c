"""launch/gke/Dockerfile: what the images are made of. No engine builds them here."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
GKE = ROOT / "launch" / "gke"


def test_hadolint_finds_nothing():
    hadolint = Path(sys.executable).with_name("hadolint")
    checked = subprocess.run([hadolint, GKE / "Dockerfile"], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_every_target_installs_the_package_in_the_tested_versions_and_is_the_program_itself():
    text = (GKE / "Dockerfile").read_text()
    base, *targets = re.split(r"^FROM base AS ", text, flags=re.MULTILINE)
    extras = {target.split("\n")[0]: re.findall(r'"\./source\[(.+)\]"', target) for target in targets}
    assert extras == {"tpu": ["tpu,gcs"], "cuda": ["cuda,gcs"], "cpu": ["gcs"]}
    assert all("--constraint source/constraints.txt" in target for target in targets)
    assert 'ENTRYPOINT ["sft-jax"]' in base and re.search(r"^FROM python:3\.\d+-slim", base, re.MULTILINE)


def test_the_build_context_is_what_is_installed_and_nothing_else():
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]

    def goes(path: str) -> bool:
        """By Docker's rules: the last pattern that matches the path or a folder above it decides."""
        folders = ["/".join(path.split("/")[: i + 1]) for i in range(path.count("/") + 1)]
        kept = True
        for rule in rules:
            pattern = "".join(
                {"**/": "(.*/)?", "*": "[^/]*"}.get(part, re.escape(part))
                for part in re.split(r"(\*\*/|\*)", rule.removeprefix("!"))
            )
            if any(re.fullmatch(pattern, folder) for folder in folders):
                kept = rule.startswith("!")
        return kept

    inside = ["pyproject.toml", "constraints.txt", "README.md", "LICENSE",
              "sft_jax/cli/main.py", "configs/quickstart.py",
              "sft_jax/data/chat/templates/chatml.jinja"]  # fmt: skip
    outside = [".git/config", ".venv/bin/python", ".cache/launchers/bin/sky", "runs/a/config.json", ".env",
               "env", "mine.env", "configs/.env", "sft_jax/prod.env", "secrets/token", "configs/key.pem", "demos.jsonl",
               "tests/conftest.py", "sft_jax/__pycache__/cli.pyc", "sft_jax.egg-info/PKG-INFO"]  # fmt: skip
    assert [path for path in inside if not goes(path)] == [] and [path for path in outside if goes(path)] == []
    copies = re.findall(r"^COPY (.*) \S+$", (GKE / "Dockerfile").read_text(), re.MULTILINE)
    copied = {word for line in copies for word in line.split()}
    assert copied == {rule[1:] for rule in rules if rule.startswith("!")}
