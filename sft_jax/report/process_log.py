"""A log file for each process of a run: where it ran, what it did, how it ended."""

import contextlib
import faulthandler
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

LOG = "logs/process-{}.log"
"""In a workdir, by the process's number."""


@contextlib.contextmanager
def process_log(path: Path, goes_with_the_process: bool = False) -> Iterator[logging.Logger]:
    """Until the end of the context, what this package logs (and warnings of others) goes to the process's file too.

    A start is appended to the file of the one before. Python's stack goes there when the process crashes (SIGSEGV,
    SIGABRT), and the exception that leaves the context.

    Args:
      goes_with_the_process: the file is a copy that a crash takes along; Python's stack goes to stderr then.
    """
    file = logging.FileHandler(path, encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root, log = logging.getLogger(), logging.getLogger("sft_jax")
    # Warnings are shown on stderr as before: by Python itself, where nobody else takes them.
    stderr = [logging.lastResort] if logging.lastResort else []
    added = [(root, handler) for handler in (file, *([] if root.handlers else stderr))]
    added += [(log, handler) for handler in (file, *stderr)]
    for logger, handler in added:
        logger.addHandler(handler)
    before = log.level, log.propagate
    log.setLevel(logging.INFO)
    log.propagate = False  # whoever has put a handler on the root would show every line on the console
    catches_crashes = not faulthandler.is_enabled()
    if catches_crashes:
        faulthandler.enable(sys.stderr if goes_with_the_process else file.stream)  # type: ignore[arg-type]
    try:
        yield log
        log.info("done")
    except Exception as error:
        log.info("ends: %s: %s", type(error).__name__, error, exc_info=error)
        raise
    finally:
        if catches_crashes:
            faulthandler.disable()
        for logger, handler in added:
            logger.removeHandler(handler)
        log.level, log.propagate = before
        file.close()
