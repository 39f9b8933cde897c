"""libtpu's lock file, which keeps a second process off this host's TPU, and how to remove a stale one."""

import fcntl
import importlib.metadata
import importlib.util
import os
from pathlib import Path

import jax

from sft_jax.errors import BadInput

LOCK = Path("/tmp/libtpu_lockfile")
DEVICES = ("/dev/accel0", "/dev/vfio/0")
"""At least one of these exists if a TPU is attached."""


def check_tpu_is_free(lock: Path = LOCK, devices: tuple[str, ...] = DEVICES) -> bool:
    """Remove a stale lock file; returns whether one was removed.

    libtpu holds a record lock (lockf) on the file. The kernel releases the lock when the process dies, but the file
    remains. Does nothing on a host without a TPU, where ahead-of-time compilation may share the file.

    Raises:
      BadInput: another process holds the TPU, or the file belongs to another user.
    """
    if not lock.exists() or not any(os.path.exists(device) for device in devices):
        return False
    try:
        with lock.open("r+b") as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            lock.unlink()
    except PermissionError as error:
        raise BadInput(
            f"{lock} cannot be opened or removed ({error.strerror}): it belongs to another user (id "
            f"{lock.stat().st_uid}), and libtpu refuses to start while it exists. Check whether a process uses the "
            f"TPU: `sudo lsof -w {lock} {' '.join(devices)}`. If none does: `sudo rm {lock}`."
        ) from error
    except OSError as error:
        listed = "".join(f"\n  process {pid}: {command}" for pid, command in _open_in(lock).items())
        raise BadInput(
            f"the TPU of this host is in use: another process holds {lock}{listed or ' (not visible to this user)'}\n"
            "Only one process at a time can use the chips: wait for it to finish, or stop it."
        ) from error
    return True


ACCELERATORS = (*DEVICES, "/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
"""One of these exists where JAX may find more than CPUs; the last is a GPU's under WSL."""


def libtpu_without_tpu(accelerators: tuple[str, ...] = ACCELERATORS) -> bool:
    """Whether JAX would look for a TPU only because libtpu is installed, here for its compiler."""
    chosen = os.environ.get("JAX_PLATFORMS") or jax.config.jax_platforms  # type: ignore[attr-defined]
    if chosen or importlib.util.find_spec("libtpu") is None:
        return False
    others = importlib.metadata.entry_points(group="jax_plugins")
    return not others and not any(map(os.path.exists, accelerators))


def _open_in(path: Path) -> dict[int, str]:
    """Process id -> command line of each process that has `path` open and is visible to this user."""
    found = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        try:
            if any(os.readlink(link) == str(path.resolve()) for link in (folder / "fd").iterdir()):
                words = (folder / "cmdline").read_bytes().split(b"\0")
                found[int(folder.name)] = b" ".join(words).decode(errors="replace").strip()
        except OSError:
            continue  # belongs to another user, or has just exited
    return found
