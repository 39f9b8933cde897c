"""What several tests of launch/gke take."""

import subprocess
from pathlib import Path

import pytest
import yaml

SCRIPT = Path(__file__).resolve().parents[3] / "launch" / "gke" / "run.sh"


@pytest.fixture
def rendered():
    """Words of `run.sh run` -> the JobSet that they make; CONFIG and image are given where the words have none."""

    def render(*words, arguments=("configs/llama31_8b.py", "--workdir", "gs://bucket/a")) -> dict:
        image = () if "--image" in words else ("--image", "example.com/sft-jax:1")
        done = subprocess.run(
            [SCRIPT, "run", "mine", *words, *image, "--dry-run", "--", *arguments], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return yaml.safe_load(done.stdout.split("<<'END'\n")[1].removesuffix("END\n"))

    return render
