"""Ranks end together, on however many hosts: one that is lost, or that gives up, ends the others.

Collectives alone would wait for a lost rank until their limit, a day, and on another host there is
no launcher to end those that wait. So each rank holds a connection to rank 0, on which nothing is
said until it leaves. The kernel closes it when a process dies, however it dies, and probes it when
a host is gone or cut off: 30 seconds. No rank has to answer in time for that, so one that works for
an hour without a collective is safe. A process that is only stopped counts as alive.
"""

import atexit
import json
import os
import secrets
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any

GRACE = 10.0  # seconds in which rank 0 may come upon another's reason by itself, and say it better


JOIN = 120.0  # seconds for all ranks to connect, once they have met


GREETING = 4096  # bytes of the longest


PROBES = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4}


def start(rank: int, world: int, share: Callable[[Any], Any]) -> None:
    """Once the ranks have met. `share` gives every rank what rank 0 has."""
    global _watch
    _watch = Watch(rank, world, share) if world > 1 else None


def leave(code: int, why: object) -> int:
    """End all ranks with this exit code, which is returned; rank 0 says why."""
    if _watch:
        return _watch.leave(code, str(why))
    print(why, file=sys.stderr)
    return code


def failed() -> bool:
    """Whether this rank ends out of order, while others may be in a collective."""
    return _watch is not None and _watch.failed


class Watch:
    """Rank 0 watches all others; each of them watches rank 0, and hears from it of the rest.

    What is said are lines of JSON: a greeting, and at the end {"code", "why"}.
    """

    def __init__(self, rank: int, world: int, share: Callable[[Any], Any]):
        self.rank, self.world = rank, world
        self.names: dict[int, str] = {}
        self.done: set[int] = set()  # those that have left in order
        self.all_done, self.failed, self.ending = threading.Event(), False, False
        self.leaving: tuple[int, str] | None = None
        self.peers = self._meet(share)
        threading.Thread(target=self._listen, daemon=True).start()
        sys.excepthook = self._unexpected
        atexit.register(self._finish)

    def leave(self, code: int, why: str) -> int:
        """Rank 0 ends first: the launcher ends all of its host when one has ended."""
        self.failed, self.leaving = True, (code, why)
        if self.rank == 0:
            print(why, file=sys.stderr, flush=True)
            self._say({"code": code, "why": why})
        else:
            self._say({"code": code, "why": f"{_where(self.rank)}: {why}"})
            time.sleep(3 * GRACE)  # `_listen` ends this rank when it hears of rank 0
        return code

    def _meet(self, share: Callable[[Any], Any]) -> dict[int, socket.socket]:
        if self.rank:
            port, token = share(None)
            connection = socket.create_connection((os.environ["MASTER_ADDR"], port), JOIN)
            greeting = {"rank": self.rank, "name": _where(self.rank), "token": token}
            connection.sendall(json.dumps(greeting).encode() + b"\n")
            self.names[0] = "rank 0"
            return {0: _probed(connection)}
        near = os.environ["MASTER_ADDR"] in ("localhost", "127.0.0.1")  # where all others look
        with socket.create_server(("127.0.0.1" if near else "", 0), backlog=self.world) as server:
            token = secrets.token_hex()
            share((server.getsockname()[1], token))
            joined = _join(server, self.world - 1, token)
        self.names |= {rank: name for rank, (_, name) in joined.items()}
        return {rank: _probed(connection) for rank, (connection, _) in joined.items()}

    def _say(self, word: dict[str, Any]) -> None:
        for peer in self.peers.values():
            with suppress(OSError):  # one that has ended: `_listen` hears of it
                peer.sendall(json.dumps(word).encode() + b"\n")

    def _listen(self) -> None:
        """The thread that hears how each peer ends."""
        with selectors.DefaultSelector() as selector:
            for rank, peer in self.peers.items():
                selector.register(peer, selectors.EVENT_READ, rank)
            while selector.get_map():
                for key, _ in selector.select():
                    word = _hear(self.peers[key.data])
                    if word is None:
                        selector.unregister(key.fileobj)
                    self._heard(key.data, word)

    def _heard(self, rank: int, word: dict[str, Any] | None) -> None:
        if word is None and rank not in self.done:
            lost = 1, f"{self.names[rank]} was lost, and so all ranks end"
            self._end(*(self.leaving or lost), self._may_speak())
        elif word and word["code"] == 0:
            self.done.add(rank)
            if len(self.done) == len(self.peers):
                self.all_done.set()
        elif word:
            self.ending = True
            if self.rank == 0:
                time.sleep(GRACE)
            self._end(word["code"], word["why"], self.rank == 0)

    def _end(self, code: int, why: str, speak: bool) -> None:
        """This process, from the thread: the main one may wait in a collective for ever."""
        if self.rank or not self.leaving:  # rank 0 has said why it leaves
            if speak:
                print(why, file=sys.stderr, flush=True)
            self._say({"code": code, "why": why})
            os._exit(code)

    def _may_speak(self) -> bool:
        """Whether to say that a peer was lost: rank 0, or where that is lost, one of each host."""
        return self.rank in (0, 1) or os.environ.get("LOCAL_RANK") == "0"

    def _finish(self) -> None:
        """In order, all leave at once: what one has sent last would be lost with its connections,
        and rank 0 may have more to do than the others.
        """
        if self.failed:
            return
        if self.rank == 0:
            self.all_done.wait()
        self._say({"code": 0})
        self.all_done.wait()

    def _unexpected(
        self, kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        """A collective fails when a peer is lost: leave it to `_listen` to say so."""
        self.failed = True
        time.sleep(1)
        if self.ending:
            time.sleep(3 * GRACE)
        sys.__excepthook__(kind, error, trace)


def _join(server: socket.socket, others: int, token: str) -> dict[int, tuple[socket.socket, str]]:
    """The other ranks' connections and names, by rank.

    Strangers may find an open port. All connections are heard at once, so that nobody waits for
    one that is silent, and only a greeting with the token is read.
    """
    joined: dict[int, tuple[socket.socket, str]] = {}
    until = time.monotonic() + JOIN
    with selectors.DefaultSelector() as selector:
        selector.register(server, selectors.EVENT_READ)
        while len(joined) < others:
            ready = selector.select(max(0.0, until - time.monotonic()))
            if time.monotonic() > until:
                raise TimeoutError(f"{len(joined)} of {others} ranks came to rank 0 in {JOIN:g} s")
            for key, _ in ready:
                if key.data is None:
                    connection, line = server.accept()[0], bytearray()
                    selector.register(connection, selectors.EVENT_READ, (connection, line))
                    continue
                connection, line = key.data
                heard = _hear_byte(connection, line)
                if heard and not line.endswith(b"\n") and len(line) < GREETING:
                    continue
                selector.unregister(connection)
                if token.encode() in line and line.endswith(b"\n"):
                    greeting = json.loads(line)
                    joined[greeting["rank"]] = connection, greeting["name"]
                else:
                    connection.close()
        for stranger, _ in [key.data for key in selector.get_map().values() if key.data]:
            stranger.close()
    return joined


def _hear(peer: socket.socket) -> dict[str, Any] | None:
    """The next word, or None where the connection has ended."""
    line = bytearray()
    while not line.endswith(b"\n"):
        if not _hear_byte(peer, line):
            return None
    return json.loads(line)


def _hear_byte(peer: socket.socket, line: bytearray) -> bool:
    """Add the next byte to the line; False where the connection has ended. More than one byte could
    be a part of the next word.
    """
    try:
        byte = peer.recv(1)
    except OSError:
        return False
    line += byte
    return bool(byte)


def _probed(connection: socket.socket) -> socket.socket:
    """Blocking, and probed by the kernel while nothing is said."""
    connection.settimeout(None)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in PROBES.items():
        if hasattr(socket, name):  # not every system lets a program choose them
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return connection


def _where(rank: int) -> str:
    return f"rank {rank} on {socket.gethostname()} (process {os.getpid()})"


_watch: Watch | None = None  # of this process
