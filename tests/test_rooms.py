"""The rooms import one way only (DESIGN, section 2), and stay small."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_a_file_imports_only_from_rooms_above_it():
    result = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_data_room_calls_no_jax():
    """Importing it must not even load jax: a tokenising process has no use for it."""
    code = "import sft_jax.data.pack.batches, sft_jax.data.pack.prepare, sys; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_no_file_is_longer_than_a_reader_holds():
    for path in [*ROOT.glob("sft_jax/**/*.py"), *ROOT.glob("tests/**/*.py")]:
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 420, path
