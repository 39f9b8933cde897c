"""README's commands, as they stand there, in a checkout of their own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SHELL = re.findall(r"^```sh\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
PYTHON = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A directory with the files of this one, and none of what runs write."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("sft_jax", "configs", "launch", "docs", ".cache"):
        (folder / name).symlink_to(ROOT / name)
    (folder / ".venv").symlink_to(sys.prefix)
    subprocess.run(["git", "init", "--quiet", folder], check=True)  # launch/tpu_vm.sh packs what git does not ignore
    (folder / ".gitignore").write_text("runs/\nmy-model/\n.venv\n.cache\n", encoding="utf-8")
    return folder


def ran(command: list[str], checkout: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("XLA_")}
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, timeout=1600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.xdist_group("README")
def test_the_commands_for_your_own_data_run_as_they_stand(checkout):
    own_data, _ = SHELL
    shown = ran(["bash", "-euo", "pipefail", "-c", own_data], checkout)
    assert "308" in shown and "step 8/8" in shown and "held-out loss" in shown
    assert (checkout / "my-model" / "model.safetensors").is_file() and (checkout / "audit.html").is_file()
    assert (checkout / "runs" / "mine" / "report.html").is_file()
    [program] = PYTHON
    assert "Hello" in ran([str(checkout / ".venv" / "bin" / "python"), "-c", program], checkout)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.xdist_group("README")
def test_the_commands_for_layouts_run_as_they_stand(checkout):
    _, layouts = SHELL
    shown = ran(["bash", "-euo", "pipefail", "-c", f"source .venv/bin/activate\n{layouts}"], checkout)
    assert "step 2/2" in shown and "gcloud" in shown and (checkout / "layout.html").is_file()


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 90
    assert all(len(line) <= 120 or line.startswith("|") for line in README.splitlines())
