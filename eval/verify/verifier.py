"""Verdicts on answers: True, False, or None for undecided.

The verifier never raises on an answer and never hangs.

`exact` compares strings; `boxed` compares the content of a response's last box. `math` takes the
answer out of the response by `answers.py` and asks math-verify whether it equals the gold. Several
different values do not match a gold of one value, and a tuple does not match a list in another
order. The worker evaluates only plain arithmetic of a response (digits, operators, brackets), and
it cannot write a file or start a process. `file.py:function` is your function,
``function(answer: str, gold: str) -> bool``, and gets the complete response. Both run in worker
processes that are killed at the time limit; the pair is then tried once more, and an undecided
verdict is not cached. Each verdict comes with the answer that the verifier read, which votes count:
the parsed expression, else the text itself; your function may return (verdict, answer). An empty
answer means that the response has none.
"""

import hashlib
import json
import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections import OrderedDict, deque
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from eval.errors import Failure
from eval.verify import answers as reading
from eval.verify.worker import UNDECIDED, Judged, Pair
from surgery.user_code import UserCodeError

MAX_CHARS = 4_096  # of an answer only this end is judged and counted: the result is at the end


MAX_RESPONSE = 32_768  # the answer is searched in this many last characters of a response


INTEGER = re.compile(r"0|-?[1-9][0-9]{0,14}")


CACHE_SIZE = 100_000  # verdicts


LIFETIME = 100_000  # verdicts of a worker, whose parser keeps about 10 MB per 1000 of odd LaTeX


START_LIMIT = 60.0  # seconds for the imports of a worker


AHEAD = 8  # pairs per message to a worker; fewer towards the end, to share the last pairs


class VerifierFailed(Failure):
    """The verifier's worker cannot start."""


class Verifier:
    """A judge of (answer, gold) pairs; `close` it, or use it in a `with`, to end its workers.

    `key` is the configuration key of the mode; errors in a user's function name it.
    """

    def __init__(
        self,
        mode: str = "exact",
        workers: int = 2,
        time_limit: float = 5.0,
        key: str = "task.verifier",
    ):
        self.mode, self.time_limit, self.key = mode, time_limit, key
        self._size = workers
        self._faults: dict[Pair, str] = {}  # errors of the user's function in the last call
        self._lost: set[Pair] = set()  # pairs in the last call that cost two workers
        self._reported = False
        self._workers: list[_Worker] = []
        self._cache: OrderedDict[Pair, Judged] = OrderedDict()

    def __enter__(self) -> "Verifier":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for worker in self._workers:
            worker.kill()
        self._workers = []

    @property
    def version(self) -> str:
        """The name and version of the judge, to distinguish scores of different versions."""
        if self.mode == "math":
            return f"math-verify {metadata.version('math-verify')}"
        if ":" in self.mode:
            code = Path(self.mode.rpartition(":")[0]).read_bytes()
            return f"{self.mode} ({hashlib.sha256(code).hexdigest()[:12]})"
        return self.mode

    def try_out(self, gold: str) -> None:
        """Call a user's function once, before any work depends on it."""
        if ":" not in self.mode:
            return
        with self:
            (verdict,) = self([gold], [gold])
        if self._lost:
            why = f"took longer than {self.time_limit:g} s, or ended its process"
            raise UserCodeError(f"{self.key} = {self.mode}: {why}; make it quicker or correct it")
        if verdict is not True and os.environ.get("RANK", "0") == "0":
            why = f"judges the gold {gold!r:.80} against itself as {verdict}, not True"
            remedy = "correct the function, unless that is meant"
            print(f"warning: {self.key} = {self.mode}: {why}; {remedy}", file=sys.stderr)

    def __call__(self, answers: Sequence[str], golds: Sequence[str]) -> list[bool | None]:
        """Return one verdict for each pair, in order."""
        return [verdict for verdict, _ in self.judge(answers, golds)]

    def judge(self, answers: Sequence[str], golds: Sequence[str]) -> list[Judged]:
        """Return the verdict on each pair, and the answer that was read."""
        math = self.mode == "math"
        takes = {"math": reading.extract, "boxed": reading.last_box}
        take = takes.get(self.mode)
        ends = {
            x: take(x[-MAX_RESPONSE:])[-MAX_CHARS:] if take else x.strip() for x in set(answers)
        }
        right = {x: (math and reading.gold(x)) or x.strip() for x in set(golds)}
        pairs = [(ends[x], right[y]) for x, y in zip(answers, golds, strict=True)]
        if math and "mod" in " ".join([*right.values(), *ends.values()]):
            pairs = [reading.of_one_modulus(*pair) for pair in pairs]
        if self.mode in ("exact", "boxed"):
            return [(answer == gold, answer[-MAX_CHARS:]) for answer, gold in pairs]
        known, new = dict[Pair, Judged](), dict[Pair, Judged]()
        for pair in dict.fromkeys(pairs):
            if pair in self._cache:
                self._cache.move_to_end(pair)
                known[pair] = self._cache[pair]
            elif math and (plain := _plain(*pair)):
                new[pair] = plain
        known |= new
        new |= self._ask([pair for pair in dict.fromkeys(pairs) if pair not in known])
        known |= new
        decided = {x: y for x, y in new.items() if y[0] is not None and len(x[0]) <= MAX_CHARS}
        self._cache.update(decided)
        while len(self._cache) > CACHE_SIZE:
            self._cache.popitem(last=False)
        if self._faults:
            self._report([self._faults[pair] for pair in pairs if pair in self._faults], len(pairs))
        return [known[pair] for pair in pairs]

    def _report(self, faults: Sequence[str], count: int) -> None:
        """Raise if the user's function fails on all answers; otherwise report the failure once."""
        line = f"{self.key} = {self.mode}: {faults[0]}, on {len(faults)} of {count} answers"
        if len(faults) == count:
            raise UserCodeError(f"{line}; correct the function")
        if not self._reported:
            print(f"{line}; these stay undecided, and so will similar answers", file=sys.stderr)
        self._reported = True

    def _ask(self, pairs: Sequence[Pair]) -> dict[Pair, Judged]:
        """Deal the pairs out to the workers, some at a time.

        A pair at which a worker died or ran out of time gets a second trial in the worker that
        replaces it: the machine may have been busy. The pairs that the worker had not reached are
        dealt again.
        """
        judged: dict[Pair, Judged] = {}
        self._faults, self._lost = {}, set()
        waiting, tried = deque(pairs), set[Pair]()
        for worker in list(self._workers):
            if worker.asked or not worker.alive():  # interrupted, or ended from outside
                self._replace(worker)
        while len(self._workers) < min(self._size, len(pairs)):
            self._workers.append(_Worker(self.mode, self.time_limit))
        while len(judged) < len(pairs):
            for worker in self._workers:
                if waiting and worker.started and not worker.asked:
                    share = min(AHEAD, len(waiting) // (2 * self._size)) or 1
                    worker.send([waiting.popleft() for _ in range(share)])
            busy = [worker for worker in self._workers if worker.asked or not worker.started]
            _wait(busy)
            for worker in busy:
                verdicts, faults, over = worker.receive()
                judged |= verdicts
                self._faults |= faults
                if over:
                    failed, rest = list(worker.asked)[:1], list(worker.asked)[1:]
                    waiting.extendleft(reversed(rest))
                    new = self._replace(worker)
                    if tried.issuperset(failed):
                        judged |= dict.fromkeys(failed, UNDECIDED)
                        self._lost.update(failed)
                    else:
                        tried.update(failed)
                        new.send(failed)
        return judged

    def _replace(self, worker: "_Worker") -> "_Worker":
        worker.kill()
        new = _Worker(self.mode, self.time_limit)
        self._workers[self._workers.index(worker)] = new
        return new


class _Worker:
    """A child process that judges the pairs it receives, in order.

    It sends each verdict before it goes on, so the time of a verdict starts at the one before.
    """

    def __init__(self, mode: str, limit: float):
        root = str(Path(__file__).resolve().parents[2])
        self.limit = limit
        path = f"import sys; sys.path.insert(0, {root!r})"
        code = f"{path}; from eval.verify.worker import serve; serve({mode!r}, {limit!r})"
        # its messages until it is ready; afterwards the judge may log a lot
        self.complaints = tempfile.TemporaryFile()  # noqa: SIM115
        # Ctrl-C and the launcher's SIGTERM reach all processes, but the trainer's step needs the
        # verdicts of the worker, which ends with its input
        ours = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-c", code],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.complaints,
                bufsize=0,
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, ours)
        assert self.process.stdin is not None and self.process.stdout is not None
        self.input, self.output = self.process.stdin, self.process.stdout
        for pipe in (self.input, self.output):  # a stopped worker must not block this process
            os.set_blocking(pipe.fileno(), False)
        self.unsent = memoryview(b"")
        self.started, self.done = False, 0
        self.deadline = time.monotonic() + START_LIMIT
        self.asked: deque[Pair] = deque()
        self.buffer = b""

    def alive(self) -> bool:
        return self.process.poll() is None

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        for file in (self.input, self.output, self.complaints):
            file.close()

    def send(self, pairs: Sequence[Pair]) -> None:
        """Send pairs to an idle worker; a worker that is still starting reads them later."""
        self.asked.extend(pairs)
        if self.started:
            self.deadline = time.monotonic() + self.limit
        self.unsent = memoryview(json.dumps(pairs).encode() + b"\n")
        self.write()

    def write(self) -> None:
        """Write as many of the unsent bytes as the pipe takes now."""
        try:
            while self.unsent and (count := self.input.write(self.unsent)):
                self.unsent = self.unsent[count:]
        except BrokenPipeError:  # the worker died; `receive` reads the end of its output
            self.unsent = memoryview(b"")

    def receive(self) -> tuple[dict[Pair, Judged], dict[Pair, str], bool]:
        """Return verdicts, errors of the user's function, and whether to replace the worker.

        A worker is replaced if it is old, dead or past its deadline. In the last two cases it was
        at the first pair in `asked`.
        """
        judged, faults = dict[Pair, Judged](), dict[Pair, str]()
        while chunk := self.output.read(2**16):
            self.buffer += chunk
        *lines, self.buffer = self.buffer.split(b"\n")
        for line in lines:
            self.deadline = time.monotonic() + self.limit
            if line == b"ready":
                self.started = True
            else:
                verdict, read, *errors = json.loads(line)
                pair = self.asked.popleft()
                judged[pair] = verdict, read[-MAX_CHARS:]
                if errors:
                    faults[pair] = errors[0]
                self.done += 1
        ended = chunk == b"" or time.monotonic() >= self.deadline
        if ended and not self.started:
            self.complaints.seek(0)
            log = self.complaints.read().decode(errors="replace").strip().splitlines()
            self.kill()
            raise VerifierFailed(f"the verifier does not start: {(log or ['no message'])[-1]}")
        return judged, faults, ended or (not self.asked and self.done >= LIFETIME)


def _wait(workers: Sequence[_Worker]) -> None:
    """Wait until a worker sends output, takes more input, or reaches its deadline."""
    pipes = select.poll()
    for worker in workers:
        pipes.register(worker.output, select.POLLIN)
        if worker.unsent:
            pipes.register(worker.input, select.POLLOUT)
    left = min(worker.deadline for worker in workers) - time.monotonic()
    pipes.poll(1_000 * max(0.0, left))
    for worker in workers:
        worker.write()


def _plain(answer: str, gold: str) -> Judged | None:
    """Return the verdict of `math` if it needs no mathematics, else None."""
    text, right = reading.canonical(answer), reading.canonical(gold)
    if not text or text == right:
        return bool(text), text
    if INTEGER.fullmatch(text) and INTEGER.fullmatch(right):
        return False, text
    if reading.several(answer) and not reading.several(reading.boxed(gold)):
        each = (_plain(reading.boxed(x), gold) for x in reading.values(answer))
        return (False, text) if any(x and not x[0] for x in each) else None
    return None
