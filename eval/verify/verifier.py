"""Verdicts on answers: True, False, or None for undecided. It never raises on an answer and never
hangs.

`exact` compares strings, `boxed` the content of a response's last box. `math` takes the answer out
of the response by `answers.py` and asks math-verify whether it equals the gold; values that
differ are no match for a gold of one, nor is a tuple for a list in another order. Of a response
only plain arithmetic (digits, operators, brackets) is ever evaluated, and the worker that does it
can write no file and start no process. `file.py:function` is a function of yours,
``function(answer: str, gold: str) -> bool``, and gets the whole response. Both run in worker
processes that are killed at the time limit; the pair is then tried once more, and an undecided
verdict is not kept for the next time. Beside the verdict stands what was read as the answer, by
which votes are counted: the parsed expression, else the text itself; a function of yours may return
(verdict, answer). Empty means that no answer was found.
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

MAX_CHARS = 4_096  # of mathematics, and of what votes are counted by, the end: there the result is


MAX_RESPONSE = 32_768  # characters at the end of a response in which its answer is looked for


INTEGER = re.compile(r"0|-?[1-9][0-9]{0,14}")


CACHE_SIZE = 100_000  # verdicts


LIFETIME = 100_000  # verdicts of a worker: of odd LaTeX its parser keeps some 10 MB in a thousand


START_LIMIT = 60.0  # seconds for a worker to import what it needs


AHEAD = 8  # pairs that a worker is sent at a time, less towards the end: none should wait in a row


class VerifierFailed(Failure):
    """The judge itself cannot start."""


class Verifier:
    """Judges (answer, gold) pairs. `close` it, or use it in a `with`, to end its workers.

    `key` is where its mode was set: an error in a function of the user's own names it.
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
        self._faults: dict[Pair, str] = {}  # of the last call: errors of the user's own function
        self._lost: set[Pair] = set()  # of the last call: what cost two workers
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
        """What judges, so that a score can be told from one of another version."""
        if self.mode == "math":
            return f"math-verify {metadata.version('math-verify')}"
        if ":" in self.mode:
            code = Path(self.mode.rpartition(":")[0]).read_bytes()
            return f"{self.mode} ({hashlib.sha256(code).hexdigest()[:12]})"
        return self.mode

    def try_out(self, gold: str) -> None:
        """Ask a function of the user's own once, before there is anything to lose."""
        if ":" not in self.mode:
            return
        with self:
            (verdict,) = self([gold], [gold])
        if self._lost:
            why = f"took longer than {self.time_limit:g} s, or ended its process"
            raise UserCodeError(f"{self.key} = {self.mode}: {why}; make it quicker or correct it")
        if verdict is not True and os.environ.get("RANK", "0") == "0":
            why = f"judges the gold {gold!r:.80} against itself as {verdict}, not True"
            print(f"{self.key} = {self.mode}: {why}; is that meant?", file=sys.stderr)

    def __call__(self, answers: Sequence[str], golds: Sequence[str]) -> list[bool | None]:
        """One verdict for each pair, in order."""
        return [verdict for verdict, _ in self.judge(answers, golds)]

    def judge(self, answers: Sequence[str], golds: Sequence[str]) -> list[Judged]:
        """The verdict on each pair, and what was read as its answer."""
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
        """Refuse to go on where the user's own function fails on all answers; else say it once."""
        line = f"{self.key} = {self.mode}: {faults[0]}, on {len(faults)} of {count} answers"
        if len(faults) == count:
            raise UserCodeError(f"{line}; correct the function")
        if not self._reported:
            print(f"{line}; these stay undecided, and so will others like them", file=sys.stderr)
        self._reported = True

    def _ask(self, pairs: Sequence[Pair]) -> dict[Pair, Judged]:
        """Deal the pairs out to the workers, some at a time.

        A pair at which a worker died or ran out of time gets a second trial in the worker that
        replaces it: the first may have met a busy machine. What that worker had not come to is
        dealt again.
        """
        judged: dict[Pair, Judged] = {}
        self._faults, self._lost = {}, set()
        waiting, tried = deque(pairs), set[Pair]()
        for worker in list(self._workers):
            if worker.asked or not worker.alive():  # left in the middle, or ended by somebody
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
                found, faults, over = worker.receive()
                judged |= found
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
    """A child process that judges the pairs it is sent in their order, and says each verdict before
    it goes on: a verdict's time begins with the one before.
    """

    def __init__(self, mode: str, limit: float):
        root = str(Path(__file__).resolve().parents[2])
        self.limit = limit
        path = f"import sys; sys.path.insert(0, {root!r})"
        code = f"{path}; from eval.verify.worker import serve; serve({mode!r}, {limit!r})"
        # what it says until it is ready; later, what it judges may log a lot
        self.complaints = tempfile.TemporaryFile()  # noqa: SIM115
        # Ctrl-C and the launcher's SIGTERM reach all processes, but the trainer's step needs its
        # verdicts; the worker ends with its input
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
        for pipe in (self.input, self.output):  # a worker that is stopped must hold up nobody
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
        """To a worker that has nothing to do. One that is still starting reads it afterwards."""
        self.asked.extend(pairs)
        if self.started:
            self.deadline = time.monotonic() + self.limit
        self.unsent = memoryview(json.dumps(pairs).encode() + b"\n")
        self.write()

    def write(self) -> None:
        """As much of what is unsent as the pipe takes now."""
        try:
            while self.unsent and (count := self.input.write(self.unsent)):
                self.unsent = self.unsent[count:]
        except BrokenPipeError:  # it died; `receive` finds the end of its output
            self.unsent = memoryview(b"")

    def receive(self) -> tuple[dict[Pair, Judged], dict[Pair, str], bool]:
        """What it has judged, errors of the user's own function, and whether it is to be replaced:
        old, or dead or past its deadline, and then it was at the first pair in `asked`.
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
            said = self.complaints.read().decode(errors="replace").strip().splitlines()
            self.kill()
            raise VerifierFailed(f"the verifier does not start: {(said or ['no word'])[-1]}")
        return judged, faults, ended or (not self.asked and self.done >= LIFETIME)


def _wait(workers: Sequence[_Worker]) -> None:
    """Until one of them has said something, or takes more of what it is sent, or is too late."""
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
    """The verdict of `math` where no mathematics is needed, else None."""
    text, right = reading.canonical(answer), reading.canonical(gold)
    if not text or text == right:
        return bool(text), text
    if INTEGER.fullmatch(text) and INTEGER.fullmatch(right):
        return False, text
    if reading.several(answer) and not reading.several(reading.boxed(gold)):
        each = (_plain(reading.boxed(x), gold) for x in reading.values(answer))
        return (False, text) if any(x and not x[0] for x in each) else None
    return None
