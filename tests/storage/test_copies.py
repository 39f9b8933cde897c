"""Where the copies of a process are, and what becomes of them."""

import os
import subprocess
import sys
from pathlib import Path


def test_copies_of_a_killed_process_are_removed_by_the_next_and_those_of_a_living_one_are_not(tmp_path):
    code = (
        "import os, time; from sft_jax.storage import copies; copies._SECONDS_TO_LOCK = {}; "
        "print(copies.home(), flush=True); {}"
    )

    def start(then: str, seconds: float = 0) -> tuple[subprocess.Popen, Path]:
        process = subprocess.Popen(
            [sys.executable, "-c", code.format(seconds, then)],
            env={**os.environ, "TMPDIR": str(tmp_path)},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout
        return process, Path(process.stdout.readline().strip())

    living, of_living = start("time.sleep(100)")
    killed, of_killed = start("os._exit(1)")
    killed.communicate()
    assert of_killed.is_dir()
    for seconds, kept in ((1000, True), (0, False)):
        process, own = start("pass", seconds)
        process.communicate()
        assert of_living.is_dir() and of_killed.is_dir() is kept and not own.exists()
    living.kill()
    living.communicate()
