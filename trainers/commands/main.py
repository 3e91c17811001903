"""The frame of every command: a line and an exit code for each error that the user can correct."""

import os
import select
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from eval.errors import Refusal, unwritable
from surgery.user_code import UserCodeError
from trainers.engine.watch import leave


def attempt(
    work: Callable[[], int | None],
    place: Path | None = None,
    interrupted: str = "interrupted",
    outlook: Callable[[], str] = lambda: "goes on",
) -> int:
    """Do the work of a command and return its exit code.

    `place` is the folder that the work writes, if there is one; `interrupted` is the line for
    Ctrl-C; `outlook` says what the same command does once the folder can be written again.
    """
    # the allocator of a GPU can then use again what blocks of another size have left
    if "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:  # the name that older torch reads
        os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    try:
        code = work() or 0
        sys.stdout.flush()
        return code
    except UserCodeError as error:
        return leave(Refusal.code, error)
    except Refusal as error:
        is_wrong = error.code == Refusal.code or place is None
        return leave(error.code, error if is_wrong else f"{place}: {error}")
    except KeyboardInterrupt:
        return leave(130, interrupted)
    except OSError as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            return 128 + signal.SIGPIPE
        if place is None or not unwritable(error, place):
            raise
        remedy = f"once it can be written, the same command {outlook()}"
        return leave(1, f"{place}: {error}; {remedy}")


def _nobody_reads() -> bool:
    """Return whether the reader of the output has gone, as in `| head`; no more is written then."""
    output = select.poll()
    output.register(sys.stdout.fileno(), 0)
    gone = any(event & select.POLLERR for _, event in output.poll(0))
    if gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return gone
