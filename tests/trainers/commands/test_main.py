"""The frame of every command: how it ends."""

import subprocess
import sys

import pytest

from tests.commands import ROOT

WRITES = """
from trainers.commands.main import attempt
raise SystemExit(attempt(lambda: print("x" * {size})))
"""


@pytest.mark.parametrize("size", [1, 1_000_000], ids=["at the end", "in between"])
def test_a_reader_that_goes_ends_the_command_without_a_traceback(size):
    command = [sys.executable, "-c", WRITES.format(size=size)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True) as process:
        process.stdout.close()
        said = process.stderr.read()
    assert (process.returncode, said) == (141, "")


def test_another_broken_pipe_is_no_end_of_the_output(capfd):
    from trainers.commands.main import attempt

    def lose():
        raise BrokenPipeError("a socket")

    with pytest.raises(BrokenPipeError):
        attempt(lose)
