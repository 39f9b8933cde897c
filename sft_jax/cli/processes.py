"""What a process of the command line does where a library must not: print, end itself, take signals."""

import os
import sys
import traceback

from sft_jax.errors import EXIT_BAD_INPUT, EXIT_FAILED, EXIT_PREEMPTED, BadInput, NonFinite, Preempted


def leave(status: int, why: str) -> None:
    """End this process from any thread: where another one is gone, the main thread waits for it and hears nothing."""
    show_cursor = "\x1b[?25h" if sys.stderr.isatty() else ""  # a progress bar hides it
    print(f"{show_cursor}\n{why}", file=sys.stderr, flush=True)
    os._exit(status)


def leave_the_others(status: int) -> None:
    """End a process of several at once: JAX's exit hook waits minutes for the others, and aborts with 134 without them.

    The others are told, and leave with the same status. An error of the runtime may come of another process's end: the
    watchdog has the time to find that out first.
    """
    start = sys.modules.get("sft_jax.distributed.start")
    if start is None or start.watch is None:
        return
    from sft_jax.distributed.watchdog import announce_exit, wait_for_watchdog

    if error := sys.exception():
        traceback.print_exception(error)
    sys.stdout.flush()
    sys.stderr.flush()
    if error:
        wait_for_watchdog(start.watch, error)
    announce_exit(start.watch, status, f"status {status}; its console says why")
    os._exit(status)


def exit_status(command, arguments) -> int:
    """Run `command(arguments)`; an expected failure becomes one message on stderr and its status."""
    try:
        return command(arguments)
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except NonFinite as error:
        print(f"stopped: {error}", file=sys.stderr)
        return EXIT_FAILED
    except Preempted as error:
        print(error, file=sys.stderr)
        return EXIT_PREEMPTED
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_FAILED
