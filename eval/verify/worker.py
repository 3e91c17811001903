"""The workers of the verifier: the loop, the wall around it, and math-verify as the judge."""

import json
import os
import signal
import sys
from collections.abc import Callable
from functools import lru_cache, wraps
from itertools import chain
from numbers import Real
from typing import Any

from eval.verify import answers as reading
from surgery.user_code import fault, load_function

BARE = 256  # characters of an expression that is read whole without being boxed


GOLDS = 1_000  # that a worker keeps as they were read


ORPHANED = 2.0  # seconds past its limit after which a worker ends by itself


OUTSIDE = ("os.", "subprocess.", "socket.", "shutil.", "ctypes.", "tempfile.")  # audit events


Pair = tuple[str, str]  # an answer and its gold


Judged = tuple[bool | None, str]  # the verdict and the answer that was read


UNDECIDED: Judged = (None, "")


def serve(mode: str, limit: float) -> None:
    """The worker: judges lists of (answer, gold), a line each, from standard input until it closes.

    It says [verdict, answer], and with an undecided verdict the error of the user's own function.
    Its parent ends it at the `limit` of a verdict. Where the parent is gone, the system does, a
    little later: nobody else would.
    """
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a judge prints must not be taken for a verdict
    judge = load_function(mode) if ":" in mode else math_judge()
    print("ready", file=out, flush=True)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    os.dup2(2, 1)
    for answer, gold in chain.from_iterable(map(json.loads, sys.stdin)):
        signal.setitimer(signal.ITIMER_REAL, limit + ORPHANED)
        try:
            said: list[Any] = [*understood(judge(answer, gold), answer)]
        except (Exception, RecursionError) as error:
            said = [*UNDECIDED, fault(error, mode, judge)] if ":" in mode else [*UNDECIDED]
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(json.dumps(said), file=out, flush=True)


def understood(found: Any, answer: str) -> Judged:
    """The verdict that a judge gave back, and the answer: as the judge read it, if it says so."""
    verdict, read = found if isinstance(found, tuple) and len(found) == 2 else (found, answer)
    truth = isinstance(verdict, Real) or type(verdict).__name__ in ("bool", "bool_")  # numpy's
    if isinstance(read, str) and (verdict is None or (truth and verdict in (0, 1))):
        return None if verdict is None else bool(verdict), read
    raise TypeError(f"returned {found!r:.80}, and not True, False, None or (one of these, a text)")


def wall(event: str, args: tuple[Any, ...]) -> None:
    """An audit hook, which nothing can take away again: the worker reads, and it computes."""
    writes = event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR) and args[0] != os.devnull
    if writes or (event.startswith(OUTSIDE) and event not in ("os.listdir", "os.scandir")):
        raise PermissionError(event)


def enclose() -> None:
    """Bound this process for good: its memory, its logs, and what it may write or start."""
    import logging
    import resource

    logging.disable()
    resource.setrlimit(resource.RLIMIT_AS, (4 * 2**30, 4 * 2**30))
    sys.set_int_max_str_digits(10_000)
    sys.dont_write_bytecode = True
    sys.addaudithook(wall)


def math_judge() -> Callable[[str, str], Judged]:
    """math-verify behind the wall; its own alarms are off, for the parent keeps the time.

    Text that is short and no prose is read as if it were boxed, from end to end.
    """
    from latex2sympy2_extended.antlr_parser import PSParser
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify
    from sympy import Equality, Interval, Tuple

    PSParser.math = in_two_stages(PSParser.math)
    enclose()

    def read(text: str, of_list: bool) -> list[Any]:
        if len(text) < BARE and not reading.boxes(text) and not reading.is_prose(text):
            text = reading.boxed(text)
        text = reading.with_numbers(text)
        text = reading.apart(text) if of_list else reading.without_separators(text)
        # of a box that is no LaTeX, the last number in it would be taken
        kinds = [
            LatexExtractionConfig(),
            *([] if reading.boxes(text) else [ExprExtractionConfig()]),
        ]
        return parse(text, kinds, parsing_timeout=None, raise_on_error=True)

    def is_ordered(x: Any) -> bool:
        """A pair in round brackets is read as an interval where that is possible."""
        return isinstance(x.rhs if isinstance(x, Equality) else x, Tuple | Interval)

    known = lru_cache(GOLDS)(read)

    def judge(answer: str, gold: str) -> Judged:
        of_list = reading.several(reading.boxed(gold))
        if not of_list and reading.several(answer):  # no hedge, where each of them is the gold
            for value in reading.values(answer):
                right, text = judge(reading.boxed(value), gold)
                if not right:
                    return False, reading.canonical(answer)
            return True, text
        found = read(answer, of_list)
        if not found:
            return False, ""
        if any(map(is_ordered, found)):  # math-verify takes a list for a set, and a pair for either
            gold = reading.in_order(gold) or gold
        right = verify(known(gold, of_list), found, timeout_seconds=None, raise_on_error=True)
        return right, str(found[0])

    return judge


def in_two_stages(rule: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A rule of an ANTLR parser that predicts without the calling context first (SLL) and, where
    that ends in a syntax error, with it (LL), which takes several times as long. A tree of the
    first stage is that of the second (Parr, Harwell, Fisher 2014, "Adaptive LL(*) Parsing").
    """
    from antlr4.atn.PredictionMode import PredictionMode

    @wraps(rule)
    def parsed(parser: Any) -> Any:
        parser._interp.predictionMode = PredictionMode.SLL
        try:
            return rule(parser)
        except Exception:  # of whatever class the parser's listener raises
            lexer = parser._input.tokenSource
            lexer.reset()
            parser._input.setTokenSource(lexer)
            parser.reset()
            parser._interp.predictionMode = PredictionMode.LL
            return rule(parser)

    return parsed
