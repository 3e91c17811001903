"""Stop a run on Ctrl-C (SIGINT) or SIGTERM after its current step is finished and saved.

Launchers pass one Ctrl-C on as several signals, SIGINT and SIGTERM, to some ranks and not to
others, and kill after 30 seconds. So the ranks agree after each step whether to stop. A further
SIGTERM changes nothing; only another SIGINT, a second after the first signal, ends the run at once.
"""

import os
import signal
import time
from types import FrameType, TracebackType

PATIENCE = 1.0  # seconds within which a second signal is the same request


NOTICE = "\nasked to stop: finishing and saving this step; Ctrl-C again ends at once\n"


class Stop:
    """A context manager that records whether this rank has been asked to stop."""

    def __init__(self, speaks: bool) -> None:
        self.speaks = speaks
        self.asked: float | None = None

    def __enter__(self) -> "Stop":
        heard = (signal.SIGINT, signal.SIGTERM)
        # a signal that was ignored from the start, as in the background of a script, stays ignored
        before = {x: signal.getsignal(x) for x in heard}
        self._before = {x: old for x, old in before.items() if old is not signal.SIG_IGN}
        for number in self._before:
            signal.signal(number, self._signal)
        return self

    def __exit__(self, kind: type | None, error: object, trace: TracebackType | None) -> None:
        for number, old in self._before.items():
            # on the way out after an error, ignore further signals
            signal.signal(number, old if kind is None else signal.SIG_IGN)

    def _signal(self, number: int, _: FrameType | None) -> None:
        now = time.monotonic()
        if self.asked is None:
            self.asked = now
            if self.speaks:
                os.write(2, NOTICE.encode())  # print is not reentrant
        elif number == signal.SIGINT and now - self.asked > PATIENCE:
            raise KeyboardInterrupt
