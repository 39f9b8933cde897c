"""What a process's log file has, and that the console has no more of it than before."""

import logging
import subprocess
import sys

import pytest

from sft_jax.report.process_log import process_log


def test_the_file_has_what_the_package_did_others_warnings_and_the_error_that_ended_it(tmp_path):
    path = tmp_path / "process-0.log"
    log = logging.getLogger("sft_jax")
    before = log.level, log.propagate, list(log.handlers), list(logging.getLogger().handlers)
    with process_log(path) as log:
        log.info("step 1")
        logging.getLogger("sft_jax.report").warning("strange")
        logging.getLogger("orbax").warning("slow")
        logging.getLogger("orbax").info("narrated")
    with pytest.raises(ZeroDivisionError), process_log(path):
        _ = 1 // 0
    text = path.read_text()
    for words in (
        "INFO sft_jax: step 1\n",
        "WARNING sft_jax.report: strange\n",
        "WARNING orbax: slow\n",
        "sft_jax: done\n",
    ):
        assert text.count(words) == 1, (words, text)
    assert "narrated" not in text
    assert "ends: ZeroDivisionError: integer" in text and "Traceback" in text and "_ = 1 // 0" in text
    assert (log.level, log.propagate, list(log.handlers), list(logging.getLogger().handlers)) == before


def test_the_console_has_warnings_once_and_no_more_and_a_crash_leaves_its_stack(tmp_path):
    program = """
import logging, os, sys
if sys.argv[2:]:
    logging.basicConfig(level=logging.INFO)  # as a library does that logs by the root
from sft_jax.report.process_log import process_log
with process_log(__import__("pathlib").Path(sys.argv[1])) as log:
    log.info("step 1")
    log.warning("strange")
    logging.getLogger("orbax").warning("slow")
    os.abort()
"""
    for number, more in enumerate(([], ["root"])):
        path = tmp_path / f"process-{number}.log"
        found = subprocess.run(
            [sys.executable, "-c", program, str(path), *more], capture_output=True, text=True, check=False
        )
        assert found.returncode == -6
        assert found.stderr.count("strange") == found.stderr.count("slow") == 1 and "step 1" not in found.stderr
        assert "Fatal Python error: Aborted" in path.read_text() and 'File "<string>", line 10' in path.read_text()
