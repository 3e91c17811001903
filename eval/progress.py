"""The progress of long work: a bar on a terminal; in a log, now and then a line with the time."""

import sys
import time

from tqdm import tqdm

EVERY = 30.0  # seconds between two lines where no terminal shows a bar
LINE = "{desc}: {n_fmt} of {total_fmt}, {elapsed} passed, {remaining} left{postfix}"


class Lines(tqdm):
    """Progress for logs and pipes, in which a bar would be one endless line."""

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        if msg is None:
            print(f"{time.strftime('%H:%M:%S')} {self}", file=self.fp, flush=True)


def progress(total: int | None, done: int, name: str, quiet: bool = False) -> tqdm:
    """Return the progress of work of which `done` parts are done; a quiet one shows nothing."""
    about = {"total": total, "initial": done, "desc": name, "disable": quiet, "file": sys.stderr}
    if sys.stderr.isatty():
        return tqdm(**about, mininterval=0.3)
    rarely = {"mininterval": EVERY, "maxinterval": EVERY, "miniters": 1}
    return Lines(**about, **rarely, leave=False, bar_format=LINE)
