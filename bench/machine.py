"""What the measurements run on, and whether everything that they need is installed: the first child of `bench.gpu`."""

import importlib.metadata
import os
import platform
import shutil
import subprocess
import tomllib
from typing import Any

from packaging.requirements import Requirement

from bench.child import ROOT, Results, Row

TORCH = ("torch", "transformers", "triton")


def dependencies() -> dict[str, str | None]:
    """Every dependency of the library, and torch's packages: name -> version, or None where it is not installed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = [Requirement(line).name for line in project["dependencies"]]
    return {name: _version(name) for name in dict.fromkeys((*names, "jaxlib", *TORCH))}


def too_old() -> list[str]:
    """What is installed in a version that pyproject.toml does not allow; measured all the same, and said."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [Requirement(line) for line in project["dependencies"]]
    found = [(one, _version(one.name)) for one in wanted]
    return [f"{one.name} {version}, expected {one.specifier}" for one, version in found if _differs(one, version)]


def _differs(wanted: Requirement, version: str | None) -> bool:
    return version is not None and not wanted.specifier.contains(version, prereleases=True)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def card() -> str | None:
    """Name, driver and memory as the driver's own tool says them; None where there is no such tool."""
    if not shutil.which("nvidia-smi"):
        return None
    command = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def described() -> Row:
    """Fails with the name of the package that is missing."""
    about: dict[str, Any] = {
        "card": card(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": dependencies(),
        "too_old": too_old(),
    }
    try:
        import bench.program
    except ModuleNotFoundError as error:
        why = (
            f"the package that {error.name} is from is not installed, and the check needs it. On a machine with PyPI, "
            "bench/collect_wheels.py collects what a bare machine lacks into .cache/gpu-wheels; bring that folder."
        )
        return {**about, "status": "failed", "why": why}
    import jax

    device = jax.devices()[0]
    memory = device.memory_stats() or {}
    return {
        **about,
        "platform": jax.default_backend(),
        "device": device.device_kind,
        "devices": jax.device_count(),
        "peak_flops": bench.program.peak_flops(device.device_kind),
        "memory_bytes": memory.get("bytes_limit"),
    }


if __name__ == "__main__":
    Results().case({}, described)
