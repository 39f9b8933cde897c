"""Collect the wheels that a GPU machine without a network lacks, for `make gpu-check` there.

    python -m bench.collect_wheels        on a machine with PyPI, before the tree is copied

Of the library's dependencies, and theirs, it takes what bench/machine_packages.txt does not list, for Python 3.12 on
x86-64 Linux, and fails where the tree and the wheels together are too large to carry.
"""

import json
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
WHEELS = ROOT / ".cache/gpu-wheels"
PRESENT = Path(__file__).with_name("machine_packages.txt")
LIMIT = 40 * 2**20
"""Bytes of the working tree and the wheels together."""

PYTHON = "3.12"
PLATFORMS = (*(f"manylinux_2_{minor}_x86_64" for minor in (34, 31, 28, 27, 24, 17)), "manylinux2014_x86_64")
SOURCE_ONLY = ("promise==2.3",)
"""Published as source alone; pure Python, so that a wheel made here fits there."""


class Found(NamedTuple):
    name: str
    version: str
    requires: tuple[Requirement, ...]


def normal(name: str) -> str:
    """A package's name as PyPI compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pip(*arguments: str) -> None:
    """pip, whose output is shown where it fails.

    Raises:
      SystemExit: it failed.
    """
    done = subprocess.run([sys.executable, "-m", "pip", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"pip {arguments[0]} failed with status {done.returncode}:\n{done.stdout}{done.stderr}")


def for_the_machine() -> list[str]:
    """pip's options for another Python and platform than these."""
    options = ["--python-version", PYTHON, "--implementation", "cp", "--only-binary=:all:"]
    return options + [option for platform in PLATFORMS for option in ("--platform", platform)]


def resolved(dependencies: Iterable[str], made: Path) -> dict[str, Found]:
    """What pip would install there, by normal name; `made` has the wheels of SOURCE_ONLY."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        pip(
            "install", "--dry-run", "--ignore-installed", "--report", str(report), "--target", folder,
            "--find-links", str(made), "--constraint", str(ROOT / "constraints.txt"), *for_the_machine(), *dependencies,
        )  # fmt: skip
        items = json.loads(report.read_text(encoding="utf-8"))["install"]
    found = {}
    for item in items:
        about = item["metadata"]
        requires = tuple(Requirement(line) for line in about.get("requires_dist", ()))
        found[normal(about["name"])] = Found(about["name"], about["version"], requires)
    return found


def lacking(dependencies: Iterable[str], found: dict[str, Found], present: set[str]) -> list[Found]:
    """What must be carried; what a package on the machine needs is there with it."""
    carried, left = {}, [Requirement(line) for line in dependencies]
    while left:
        wanted = left.pop()
        name = normal(wanted.name)
        if name in present or name in carried:
            continue
        carried[name] = found[name]
        for extra in ("", *wanted.extras):
            environment = {"python_version": PYTHON, "sys_platform": "linux", "extra": extra}
            left += [one for one in found[name].requires if one.marker is None or one.marker.evaluate(environment)]
    return sorted(carried.values())


def tree_bytes() -> int:
    """Files of the working tree that git does not ignore."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    return sum((ROOT / name).lstat().st_size for name in names if name and (ROOT / name).is_file())


def collect(wheels: Path) -> tuple[list[Path], list[str]]:
    """Fill the folder anew: (its wheels, the names that were left out)."""
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    lines = PRESENT.read_text(encoding="utf-8").splitlines()
    present = {normal(line) for line in lines if line and not line.startswith("#")}
    shutil.rmtree(wheels, ignore_errors=True)
    wheels.mkdir(parents=True)
    pip("wheel", "--no-deps", "--wheel-dir", str(wheels), *SOURCE_ONLY)
    found = resolved(dependencies, wheels)
    carried = lacking(dependencies, found, present)
    pins = [f"{one.name}=={one.version}" for one in carried if f"{one.name}=={one.version}" not in SOURCE_ONLY]
    pip("download", "--no-deps", "--dest", str(wheels), *for_the_machine(), *pins)
    return sorted(wheels.glob("*.whl")), sorted(found.keys() - {normal(one.name) for one in carried})


def main() -> None:
    wheels, left_out = collect(WHEELS)
    for wheel in wheels:
        print(f"{wheel.stat().st_size / 2**20:7.2f} MiB  {wheel.name}")
    print(f"left out, since the machine has them or nothing there needs them: {', '.join(left_out)}")
    carried, tree = sum(wheel.stat().st_size for wheel in wheels), tree_bytes()
    told = f"{carried / 2**20:.1f} MiB of wheels and {tree / 2**20:.1f} MiB of working tree"
    if carried + tree > LIMIT:
        raise SystemExit(
            f"{told}: more than {LIMIT / 2**20:.0f} MiB to carry. The largest wheels stand above: list one in "
            f"{PRESENT.relative_to(ROOT)} if the machine has it, or make its import lazy and leave it out."
        )
    print(f"{told}, of {LIMIT / 2**20:.0f} MiB; the wheels are in {WHEELS.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
