"""A log file for each process of a run: where it ran, what it did, how it ended."""

import contextlib
import faulthandler
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

LOG = "logs/process-{}.log"
"""Path in a workdir, by process id."""


@contextlib.contextmanager
def process_log(path: Path, is_ephemeral: bool = False) -> Iterator[logging.Logger]:
    """Within the context, also write this package's log (and warnings of other packages) to the process's file.

    Restarts append to the file. It also gets the Python stack of a crash (SIGSEGV, SIGABRT) and an exception raised in
    the context.

    Args:
      is_ephemeral: the file is a local copy that is lost in a crash, so write the crash's stack to stderr.
    """
    file = logging.FileHandler(path, encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root, log = logging.getLogger(), logging.getLogger("sft_jax")
    # Still show warnings on stderr, through Python's last-resort handler if there is no other.
    stderr = [logging.lastResort] if logging.lastResort else []
    added = [(root, handler) for handler in (file, *([] if root.handlers else stderr))]
    added += [(log, handler) for handler in (file, *stderr)]
    for logger, handler in added:
        logger.addHandler(handler)
    before = log.level, log.propagate
    log.setLevel(logging.INFO)
    log.propagate = False  # a handler on the root logger would print every line to the console
    catches_crashes = not faulthandler.is_enabled()
    if catches_crashes:
        faulthandler.enable(sys.stderr if is_ephemeral else file.stream)  # type: ignore[arg-type]
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
