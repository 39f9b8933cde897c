"""The rooms import one way only (docs/architecture.md), and stay small."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_a_file_imports_only_from_rooms_above_it():
    result = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_page_about_the_rooms_has_those_that_are_there_in_the_order_of_their_imports():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = page[page.index("| Room | What |") : page.index("`configs/` are Python files")]
    described = re.findall(r"^\| `([a-z_]+)(?:/|\.py)` \|", table, re.MULTILINE)
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    layers = next(one["layers"] for one in contracts if one["name"] == "a file imports only from rooms above it")
    checked = [name.removeprefix("sft_jax.") for name in reversed(layers) if name != "sft_jax.__main__"]
    there = {path.stem for path in (ROOT / "sft_jax").iterdir() if not path.name.startswith("_")}
    assert described == checked and set(checked) == there


def test_the_data_room_calls_no_jax():
    """Importing it must not even load jax: a tokenising process has no use for it."""
    code = "import sft_jax.data.pack.batches, sft_jax.data.pack.prepare, sys; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_no_file_is_longer_than_a_reader_holds():
    for path in [*(path for room in ("sft_jax", "bench", "tests") for path in ROOT.glob(f"{room}/**/*.py"))]:
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 420, path
