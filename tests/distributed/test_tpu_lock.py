"""A TPU's lock file: held by a living process, left by a dead one, or of another user."""

import subprocess
import sys
import types

import pytest

from sft_jax.distributed.tpu_lock import check_tpu_is_free, libtpu_without_tpu
from sft_jax.errors import BadInput

HOLD = """
import fcntl, sys, time
file = open(sys.argv[1], "w")
fcntl.lockf(file, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def tpu(tmp_path):
    """A device file that says that there is a TPU, and the lock's path."""
    device = tmp_path / "accel0"
    device.touch()
    return tmp_path / "libtpu_lockfile", (str(device),)


def test_a_lock_that_a_living_process_holds_is_refused_with_its_number_and_command(tpu):
    lock, devices = tpu
    with subprocess.Popen([sys.executable, "-c", HOLD, lock], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(
            BadInput, match=rf"in use(.|\n)*process {holder.pid}: .*python(.|\n)*wait for it to finish"
        ) as refused:
            check_tpu_is_free(lock, devices)
        assert str(lock) in str(refused.value) and lock.exists()
        holder.kill()
    assert check_tpu_is_free(lock, devices) and not lock.exists()  # what the killed one left


def test_without_a_tpu_or_without_a_lock_nothing_is_touched(tpu):
    lock, devices = tpu
    assert not check_tpu_is_free(lock, devices)
    lock.touch()
    assert not check_tpu_is_free(lock, ("/dev/no-such-accelerator",)) and lock.exists()


def test_a_lock_that_cannot_be_opened_is_explained(tpu, monkeypatch):
    lock, devices = tpu
    lock.touch()

    def denied(self, mode):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(lock), "open", denied)  # root may open everything
    with pytest.raises(BadInput, match=r"belongs to another user \(id \d+\).*sudo lsof(.|\n)*sudo rm"):
        check_tpu_is_free(lock, devices)
    assert lock.exists()


def test_a_tpu_is_not_looked_for_where_libtpu_is_installed_for_its_compiler_alone(tpu, tmp_path, monkeypatch):
    _, devices = tpu
    absent = (str(tmp_path / "absent"),)
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setattr(
        "sft_jax.distributed.tpu_lock.jax", types.SimpleNamespace(config=types.SimpleNamespace(jax_platforms=None))
    )
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: ())
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert not libtpu_without_tpu(absent)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name == "libtpu" or None)
    assert libtpu_without_tpu(absent) and not libtpu_without_tpu((*absent, *devices))
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: ("cuda",))
    assert not libtpu_without_tpu(absent), "a plug-in may find a device of its own"
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: ())
    monkeypatch.setenv("JAX_PLATFORMS", "tpu")
    assert not libtpu_without_tpu(absent), "the user has said which"
