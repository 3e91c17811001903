"""The workers of the verifier: the loop, its restrictions, and math-verify as the judge."""

import json
import os
import signal
import sys
from collections.abc import Callable
from functools import lru_cache, wraps
from itertools import chain
from typing import Any

from eval.verify import answers as reading
from surgery.user_code import fault, load_function

BARE = 256  # characters up to which an expression without a box is read as if boxed


GOLDS = 1_000  # parsed golds that a worker caches


ORPHANED = 2.0  # seconds after the limit at which a worker without a parent ends


OUTSIDE = ("os.", "subprocess.", "socket.", "shutil.", "ctypes.", "tempfile.")  # audit events


Pair = tuple[str, str]  # an answer and its gold


Judged = tuple[bool | None, str]  # the verdict and the answer that was read


UNDECIDED: Judged = (None, "")


def serve(mode: str, limit: float) -> None:
    """Judge lists of (answer, gold), one per line, from standard input until it closes.

    The output is [verdict, answer], and for an undecided verdict also the error of the user's
    function. The parent ends the worker at the `limit` of a verdict. If the parent is gone, a
    system timer ends the worker a little later.
    """
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # text that a judge prints must not count as a verdict
    judge = load_function(mode) if ":" in mode else math_judge()
    print("ready", file=out, flush=True)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    os.dup2(2, 1)
    for answer, gold in chain.from_iterable(map(json.loads, sys.stdin)):
        signal.setitimer(signal.ITIMER_REAL, limit + ORPHANED)
        try:
            line: list[Any] = [*understood(judge(answer, gold), answer)]
        except (Exception, RecursionError) as error:
            line = [*UNDECIDED, fault(error, mode, judge)] if ":" in mode else [*UNDECIDED]
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(json.dumps(line), file=out, flush=True)


def understood(result: Any, answer: str) -> Judged:
    """Return the verdict of a judge, and the answer: the judge's reading if it returns one."""
    verdict, read = result if isinstance(result, tuple) and len(result) == 2 else (result, answer)
    truth = type(verdict).__name__ in ("bool", "bool_")  # Python's and numpy's
    if isinstance(read, str) and (verdict is None or truth):
        return None if verdict is None else bool(verdict), read
    raise TypeError(f"returned {result!r:.80} instead of True, False, None or (verdict, text)")


def wall(event: str, args: tuple[Any, ...]) -> None:
    """Allow only reads and computation, as an audit hook, which cannot be removed."""
    writes = event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR) and args[0] != os.devnull
    if writes or (event.startswith(OUTSIDE) and event not in ("os.listdir", "os.scandir")):
        raise PermissionError(event)


def enclose() -> None:
    """Restrict this process for its lifetime: memory, logs, written files and new processes."""
    import logging
    import resource

    logging.disable()
    resource.setrlimit(resource.RLIMIT_AS, (4 * 2**30, 4 * 2**30))
    sys.set_int_max_str_digits(10_000)
    sys.dont_write_bytecode = True
    sys.addaudithook(wall)


def math_judge() -> Callable[[str, str], Judged]:
    """Return math-verify as a judge behind `wall`, without its alarms: the parent keeps the time.

    Short text that is not prose is read completely, as if it were boxed.
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
        # without boxes only: for a box that is not LaTeX, this would take its last number
        kinds = [
            LatexExtractionConfig(),
            *([] if reading.boxes(text) else [ExprExtractionConfig()]),
        ]
        return parse(text, kinds, parsing_timeout=None, raise_on_error=True)

    def is_ordered(x: Any) -> bool:
        """Return whether x is a tuple; a pair in round brackets may be read as an interval."""
        return isinstance(x.rhs if isinstance(x, Equality) else x, Tuple | Interval)

    known = lru_cache(GOLDS)(read)

    def judge(answer: str, gold: str) -> Judged:
        of_list = reading.several(reading.boxed(gold))
        if not of_list and reading.several(answer):  # right only if each value is the gold
            for value in reading.values(answer):
                right, text = judge(reading.boxed(value), gold)
                if not right:
                    return False, reading.canonical(answer)
            return True, text
        parsed = read(answer, of_list)
        if not parsed:
            return False, ""
        if any(map(is_ordered, parsed)):  # math-verify equates lists and sets, and pairs with both
            gold = reading.in_order(gold) or gold
        right = verify(known(gold, of_list), parsed, timeout_seconds=None, raise_on_error=True)
        return right, str(parsed[0])

    return judge


def in_two_stages(rule: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Make a rule of an ANTLR parser predict without the calling context (SLL) first.

    After a syntax error it predicts with the context (LL), which takes several times as long. A
    tree of the first stage equals that of the second (Parr, Harwell, Fisher 2014, "Adaptive LL(*)
    Parsing").
    """
    from antlr4.atn.PredictionMode import PredictionMode

    @wraps(rule)
    def parsed(parser: Any) -> Any:
        parser._interp.predictionMode = PredictionMode.SLL
        try:
            return rule(parser)
        except Exception:  # the parser's listener may raise any class
            lexer = parser._input.tokenSource
            lexer.reset()
            parser._input.setTokenSource(lexer)
            parser.reset()
            parser._interp.predictionMode = PredictionMode.LL
            return rule(parser)

    return parsed
