"""End all ranks together, on all hosts: a rank that is lost or gives up ends the others.

Collectives alone would wait for a lost rank until their timeout, a day, and no launcher on another
host would end the ranks that wait. So each rank holds a connection to rank 0, and sends nothing on
it until it leaves. The kernel closes the connection when a process dies for any reason. Kernel
probes detect within 30 seconds that a host is gone or cut off. No rank has to answer in time, so a
rank that works for an hour without a collective is safe. A process that is only stopped counts as
alive.
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

GRACE = 10.0  # seconds in which rank 0 may meet another rank's error itself and report it better


JOIN = 120.0  # seconds for all ranks to connect after the group was made


GREETING = 4096  # bytes of the longest greeting


PROBES = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4}


def start(rank: int, world: int, share: Callable[[Any], Any]) -> None:
    """Start the watch of this process after the ranks have joined.

    `share` returns rank 0's item on every rank.
    """
    global _watch
    _watch = Watch(rank, world, share) if world > 1 else None


def leave(code: int, why: object) -> int:
    """End all ranks with this exit code and return it; rank 0 prints the reason."""
    if _watch:
        return _watch.leave(code, str(why))
    print(why, file=sys.stderr)
    return code


def failed() -> bool:
    """Return whether this rank ends out of order, while others may be in a collective."""
    return _watch is not None and _watch.failed


class Watch:
    """The connections of this rank: rank 0 watches all others, and each of them watches rank 0.

    Rank 0 passes the end of one rank on to the others. The messages are lines of JSON: a greeting,
    and at the end {"code", "why"}.
    """

    def __init__(self, rank: int, world: int, share: Callable[[Any], Any]):
        self.rank, self.world = rank, world
        self.names: dict[int, str] = {}
        self.done: set[int] = set()  # ranks that have left in order
        self.all_done, self.failed, self.ending = threading.Event(), False, False
        self.leaving: tuple[int, str] | None = None
        self.peers = self._connect(share)
        threading.Thread(target=self._listen, daemon=True).start()
        sys.excepthook = self._unexpected
        atexit.register(self._finish)

    def leave(self, code: int, why: str) -> int:
        """End all ranks, rank 0 first: the launcher ends all ranks of its host when one ends."""
        self.failed, self.leaving = True, (code, why)
        if self.rank == 0:
            print(why, file=sys.stderr, flush=True)
            self._send({"code": code, "why": why})
        else:
            self._send({"code": code, "why": f"{_where(self.rank)}: {why}"})
            time.sleep(3 * GRACE)  # `_listen` ends this rank when rank 0 ends
        return code

    def _connect(self, share: Callable[[Any], Any]) -> dict[int, socket.socket]:
        if self.rank:
            port, token = share(None)
            connection = socket.create_connection((os.environ["MASTER_ADDR"], port), JOIN)
            greeting = {"rank": self.rank, "name": _where(self.rank), "token": token}
            connection.sendall(json.dumps(greeting).encode() + b"\n")
            self.names[0] = "rank 0"
            return {0: _probed(connection)}
        near = os.environ["MASTER_ADDR"] in ("localhost", "127.0.0.1")  # all ranks are on this host
        with socket.create_server(("127.0.0.1" if near else "", 0), backlog=self.world) as server:
            token = secrets.token_hex()
            share((server.getsockname()[1], token))
            joined = _join(server, self.world - 1, token)
        self.names |= {rank: name for rank, (_, name) in joined.items()}
        return {rank: _probed(connection) for rank, (connection, _) in joined.items()}

    def _send(self, message: dict[str, Any]) -> None:
        for peer in self.peers.values():
            with suppress(OSError):  # `_listen` handles a peer that has ended
                peer.sendall(json.dumps(message).encode() + b"\n")

    def _listen(self) -> None:
        """Receive the end of each peer; runs in a thread."""
        with selectors.DefaultSelector() as selector:
            for rank, peer in self.peers.items():
                selector.register(peer, selectors.EVENT_READ, rank)
            while selector.get_map():
                for key, _ in selector.select():
                    message = _receive(self.peers[key.data])
                    if message is None:
                        selector.unregister(key.fileobj)
                    self._handle(key.data, message)

    def _handle(self, rank: int, message: dict[str, Any] | None) -> None:
        if message is None and rank not in self.done:
            lost = 1, f"{self.names[rank]} was lost, and so all ranks end"
            self._end(*(self.leaving or lost), self._reports_loss())
        elif message and message["code"] == 0:
            self.done.add(rank)
            if len(self.done) == len(self.peers):
                self.all_done.set()
        elif message:
            self.ending = True
            if self.rank == 0:
                time.sleep(GRACE)
            self._end(message["code"], message["why"], self.rank == 0)

    def _end(self, code: int, why: str, report: bool) -> None:
        """End this process from the thread: the main thread may wait in a collective for ever."""
        if self.rank or not self.leaving:  # rank 0 has printed why it leaves
            if report:
                print(why, file=sys.stderr, flush=True)
            self._send({"code": code, "why": why})
            os._exit(code)

    def _reports_loss(self) -> bool:
        """Return whether to print that a peer was lost.

        Rank 0 prints it, or, if rank 0 itself is lost, one rank of each host.
        """
        return self.rank in (0, 1) or os.environ.get("LOCAL_RANK") == "0"

    def _finish(self) -> None:
        """Wait until all ranks are done, so that ranks that end in order leave together.

        The last data that a rank has sent would be lost with its connections, and rank 0 may have
        more to do than the others.
        """
        if self.failed:
            return
        if self.rank == 0:
            self.all_done.wait()
        self._send({"code": 0})
        self.all_done.wait()

    def _unexpected(
        self, kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        """Handle an uncaught error: a lost peer fails a collective, and `_listen` reports that."""
        self.failed = True
        time.sleep(1)
        if self.ending:
            time.sleep(3 * GRACE)
        sys.__excepthook__(kind, error, trace)


def _join(server: socket.socket, others: int, token: str) -> dict[int, tuple[socket.socket, str]]:
    """Return the connections and names of the other ranks, by rank.

    Other programs may connect to the open port. All connections are read side by side, so that a
    silent one holds up no other, and only a greeting with the token is accepted.
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
                is_open = _receive_byte(connection, line)
                if is_open and not line.endswith(b"\n") and len(line) < GREETING:
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


def _receive(peer: socket.socket) -> dict[str, Any] | None:
    """Return the next message, or None if the connection has ended."""
    line = bytearray()
    while not line.endswith(b"\n"):
        if not _receive_byte(peer, line):
            return None
    return json.loads(line)


def _receive_byte(peer: socket.socket, line: bytearray) -> bool:
    """Add the next byte to the line; return False if the connection has ended.

    It reads one byte, because more bytes could belong to the next message.
    """
    try:
        byte = peer.recv(1)
    except OSError:
        return False
    line += byte
    return bool(byte)


def _probed(connection: socket.socket) -> socket.socket:
    """Make the connection blocking, and let the kernel probe it while it is silent."""
    connection.settimeout(None)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in PROBES.items():
        if hasattr(socket, name):  # not every system lets a program choose these values
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return connection


def _where(rank: int) -> str:
    return f"rank {rank} on {socket.gethostname()} (process {os.getpid()})"


_watch: Watch | None = None  # the watch of this process
