"""The file by which libtpu keeps a second process off this host's TPU, and what a dead process leaves of it."""

import fcntl
import importlib.metadata
import importlib.util
import os
from pathlib import Path

import jax

from sft_jax.errors import BadInput

LOCK = Path("/tmp/libtpu_lockfile")
DEVICES = ("/dev/accel0", "/dev/vfio/0")
"""One of these exists where a TPU is attached."""


def check_tpu_is_free(lock: Path = LOCK, devices: tuple[str, ...] = DEVICES) -> bool:
    """Remove a lock file that no living process holds; True where one was removed.

    libtpu holds it by a record lock (lockf), which the kernel takes from a process that dies; the file stays. Nothing
    happens without a TPU: the compiler for absent chips may share the file.

    Raises:
      BadInput: another process holds the TPU, or the file is another user's.
    """
    if not lock.exists() or not any(os.path.exists(device) for device in devices):
        return False
    try:
        with lock.open("r+b") as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            lock.unlink()
    except PermissionError as error:
        raise BadInput(
            f"{lock} cannot be opened or removed ({error.strerror}): it is of another user (id {lock.stat().st_uid}), "
            f"and libtpu stops at it. See whether a process has the TPU: `sudo lsof -w {lock} {' '.join(devices)}`. If "
            f"none has: `sudo rm {lock}`."
        ) from error
    except OSError as error:
        listed = "".join(f"\n  process {pid}: {command}" for pid, command in _open_in(lock).items())
        raise BadInput(
            f"the TPU of this host is in use: another process holds {lock}{listed or ' (not to be seen from here)'}\n"
            "One process at a time uses the chips: wait for its end, or stop it."
        ) from error
    return True


ACCELERATORS = (*DEVICES, "/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
"""One of these exists where JAX may find more than CPUs; the last is a GPU's under WSL."""


def libtpu_without_tpu(accelerators: tuple[str, ...] = ACCELERATORS) -> bool:
    """Whether JAX would look for a TPU only because libtpu is installed, here for its compiler."""
    if os.environ.get("JAX_PLATFORMS") or jax.config.jax_platforms or importlib.util.find_spec("libtpu") is None:
        return False
    others = importlib.metadata.entry_points(group="jax_plugins")
    return not others and not any(map(os.path.exists, accelerators))


def _open_in(path: Path) -> dict[int, str]:
    """Process id -> command line, of the processes that have `path` open, as far as this user may see."""
    found = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        try:
            if any(os.readlink(link) == str(path.resolve()) for link in (folder / "fd").iterdir()):
                words = (folder / "cmdline").read_bytes().split(b"\0")
                found[int(folder.name)] = b" ".join(words).decode(errors="replace").strip()
        except OSError:
            continue  # another user's, or it has just ended
    return found
