"""What is carried to a machine without a network, and that it is said when it is too much."""

import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from bench import collect_wheels
from bench.collect_wheels import Found, lacking

ROOT = Path(__file__).parents[2]


def found(**packages: str) -> dict[str, Found]:
    return {
        name: Found(name, "1.0", tuple(Requirement(line) for line in needs.split(" and ") if line))
        for name, needs in packages.items()
    }


def test_what_the_machine_has_is_not_carried_nor_what_only_that_needs():
    packages = found(jax="scipy>=1", scipy="", rich="pygments and jax", pygments="")
    assert [one.name for one in lacking(["jax>=0.10", "rich[all]"], packages, {"jax"})] == ["pygments", "rich"]


def test_extras_and_markers_count_as_they_do_on_that_machine():
    packages = found(
        a='one; extra == "x" and two; extra == "y" and old; python_version < "3.12" and win; sys_platform == "win32"',
        one="", two="", old="", win="",
    )  # fmt: skip
    assert [each.name for each in lacking(["a[x]"], packages, set())] == ["a", "one"]


def test_more_than_can_be_carried_is_refused_with_the_sizes(monkeypatch, tmp_path, capsys):
    wheel = tmp_path / "large-1.0-py3-none-any.whl"
    wheel.write_bytes(b"x" * 2**20)
    monkeypatch.setattr(collect_wheels, "collect", lambda wheels: ([wheel], ["jax"]))
    monkeypatch.setattr(collect_wheels, "LIMIT", 2**20)
    monkeypatch.setattr(collect_wheels, "tree_bytes", lambda: 1)
    with pytest.raises(SystemExit, match=r"1\.0 MiB of wheels and 0\.0 MiB of working tree: more than 1 MiB to carry"):
        collect_wheels.main()
    assert "1.00 MiB  large-1.0" in capsys.readouterr().out


def test_the_script_is_clean_shell():
    shellcheck = Path(sys.executable).with_name("shellcheck")
    done = subprocess.run([shellcheck, ROOT / "bench/gpu_check.sh"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
