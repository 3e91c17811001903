"""How four ranks end, each a process that only watches the others."""

import json
import socket
import subprocess
import sys
import time
from contextlib import ExitStack

import pytest

from tests.commands import ROOT

RANK = """
import json, os, signal, sys, time
from pathlib import Path
from trainers.engine import watch

rank, place, watch.GRACE = int(sys.argv[1]), Path(sys.argv[2]), 0.5
os.environ |= {"MASTER_ADDR": "127.0.0.1", "LOCAL_SIZE": "4", "LOCAL_RANK": str(rank)}

def share(item):
    if rank == 0:
        (place / "part").write_text(json.dumps(item))
        (place / "part").rename(place / "item")
    while not (place / "item").exists():
        time.sleep(0.01)
    return json.loads((place / "item").read_text())

def die():
    os.kill(os.getpid(), signal.SIGKILL)

watch.start(rank, 4, share)
"""
WORK = "time.sleep(60)"


def begin(place, rank, act):
    command = [sys.executable, "-c", RANK + act, str(rank), str(place)]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)


def ends(place, *acts):
    """(exit codes, what each rank said, seconds) of ranks that do these things once they watch."""
    start = time.monotonic()
    ranks = [begin(place, rank, act) for rank, act in enumerate(acts)]
    said = [rank.communicate(timeout=40)[1] for rank in ranks]
    return [rank.returncode for rank in ranks], said, time.monotonic() - start


def test_in_order(tmp_path):
    """Those that are early wait for the others, and nobody says a word."""
    codes, said, _ = ends(tmp_path, *(f"time.sleep({x})" for x in (0.5, 0, 1, 0.2)))
    assert codes == [0] * 4 and said == [""] * 4


def test_lost(tmp_path):
    codes, said, seconds = ends(tmp_path, WORK, WORK, "die()", WORK)
    assert codes == [1, 1, -9, 1] and seconds < 20
    assert said[0].startswith("rank 2 on ") and said[0].endswith("was lost, and so all ranks end\n")
    assert said[1:] == [""] * 3


def test_rank_0_lost(tmp_path):
    codes, said, seconds = ends(tmp_path, "die()", WORK, WORK, WORK)
    assert codes == [-9, 1, 1, 1] and seconds < 20
    assert said == ["", "rank 0 was lost, and so all ranks end\n", "", ""]


def test_lost_in_a_collective(tmp_path):
    """What the collective raises on another rank is no news."""
    fails = "time.sleep(0.5); raise RuntimeError('connection closed by peer')"
    codes, said, _ = ends(tmp_path, fails, "time.sleep(0.3); die()", fails, fails)
    assert codes == [1, -9, 1, 1]
    assert "rank 1 on " in said[0] and "Traceback" not in "".join(said)


def test_an_error_of_ones_own(tmp_path):
    codes, said, _ = ends(tmp_path, WORK, WORK, "raise ValueError('mine')", WORK)
    assert codes == [1, 1, 1, 1]
    assert "ValueError: mine" in said[2] and said[0].startswith("rank 2 on ")


@pytest.mark.parametrize("who", [(0,), (2,), (0, 1, 2, 3)])
def test_refused(tmp_path, who):
    """Rank 0 prints the error once, whichever rank raised it."""
    refuse = "sys.exit(watch.leave(2, 'lr = 0: too little'))"
    codes, said, seconds = ends(tmp_path, *(refuse if i in who else WORK for i in range(4)))
    assert codes == [2] * 4 and seconds < 20
    assert said[0].count("lr = 0: too little\n") == 1 and said[1:] == [""] * 3
    assert said[0].startswith("lr = 0" if 0 in who else "rank 2 on ")


RUBBISH = [b"", b"{", b"[]\n", b"\xff\n", b"[" * 999 + b"\n", b'{"token": ""}\n', b"x" * 9999]


def test_strangers_and_a_word_that_comes_with_the_greeting(tmp_path):
    """The other three ranks are sockets; strangers come before them, and some stay."""
    refused = {"code": 2, "why": "lr = 0: too little"}
    rank_0, start = begin(tmp_path, 0, WORK), time.monotonic()
    while not (tmp_path / "item").exists():
        assert time.monotonic() < start + 20 and rank_0.poll() is None
        time.sleep(0.01)
    port, token = json.loads((tmp_path / "item").read_text())
    with ExitStack() as connections:

        def say(words):
            connection = socket.create_connection(("127.0.0.1", port))
            connections.enter_context(connection).sendall(words)

        for words in RUBBISH:
            say(words)
        for rank in (1, 2, 3):
            greeting = {"rank": rank, "name": f"rank {rank}", "token": token}
            words = [greeting, refused] if rank == 2 else [greeting]
            say(b"".join(json.dumps(x).encode() + b"\n" for x in words))
        said = rank_0.communicate(timeout=20)[1]
    assert (rank_0.returncode, said) == (2, "lr = 0: too little\n")
