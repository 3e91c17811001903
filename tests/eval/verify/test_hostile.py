"""Hostile responses: nothing hangs, leaks or is run, and nothing wrong is judged right."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.verify import answers
from eval.verify.verifier import MAX_CHARS, MAX_RESPONSE, Verifier, _plain
from tests.commands import ROOT
from tests.hostile import (
    EQUAL,
    GOLD,
    LISTS,
    NOT_IT,
    ORDERED,
    PIECES,
    SLOW,
    UNEQUAL,
    code,
)

LIMIT = 1.0
RESPONSES = st.lists(st.sampled_from(PIECES) | st.text(max_size=8), max_size=30).map("".join)
QUICK = settings(max_examples=200, deadline=None, database=None, derandomize=True)
LONG = settings(QUICK, max_examples=20_000, derandomize=False)


@pytest.fixture(scope="module")
def math():
    with Verifier("math", workers=2, time_limit=LIMIT) as verifier:
        verifier(["8.5"], ["7"])  # the first worker is up
        yield verifier


def judged(verifier, responses):
    """The verdicts, in no more time than the workers' limits allow."""
    start = time.monotonic()
    verdicts = verifier(responses, [GOLD] * len(responses))
    starting = 20  # seconds of a worker on a busy machine, for each that was killed
    slow = verdicts.count(None)
    assert time.monotonic() - start < 30 + slow * (LIMIT + starting) + 0.2 * len(responses)
    return verdicts


@pytest.mark.parametrize("form", ["{}", "so it is ${}$.", "thus\n{}"])
def test_no_hedge_and_no_look_alike_is_right(math, form):
    responses = [form.format(x) for x in [*LISTS, *NOT_IT]]
    verdicts = judged(math, responses)
    assert [x for x, right in zip(responses, verdicts, strict=True) if right] == []
    assert math([rf"\boxed{{{GOLD}}}"], [GOLD]) == [True]


def test_a_tuple_is_no_list_in_another_order(math):
    """The same order in round brackets is that list: so some write the values of x, then of y."""
    pairs = [(x, gold, False) for gold, wrong, _ in ORDERED for x in wrong]
    pairs += [(x, gold, True) for gold, _, right in ORDERED for x in right]
    for form in (r"\boxed{%s}", "#### %s"):
        answers, golds = [form % x for x, *_ in pairs], [gold for _, gold, _ in pairs]
        verdicts = zip(pairs, math(answers, golds), strict=True)
        assert [x for x, verdict in verdicts if verdict is not x[2]] == []


def test_one_value_said_twice_is_no_hedge(math):
    for pairs, right in ((EQUAL, True), (UNEQUAL, False)):
        golds, responses = zip(*pairs, strict=True)
        verdicts = zip(pairs, math(responses, golds), strict=True)
        assert [x for x, verdict in verdicts if verdict is not right] == []
    solutions = [response for _, response in EQUAL[:2]]  # a gold may be a solution
    assert math(solutions, solutions) == [True, True]


def test_nothing_hangs(math):
    verdicts = judged(math, SLOW)
    assert True not in verdicts
    assert math([r"\boxed{\frac{123456}{2}}"], [GOLD]) == [True]  # killed workers were replaced
    for mode in ("exact", "boxed"):
        assert not any(Verifier(mode)(SLOW, [GOLD] * len(SLOW)))


@pytest.mark.parametrize("text", SLOW)
def test_reading_an_answer_takes_no_time(text):
    """It is done in the run's own process, which nothing would end."""
    start = time.process_time()
    answer = answers.extract(text[-MAX_RESPONSE:])[-MAX_CHARS:]
    answers.canonical(answer), answers.several(answer), answers.is_prose(answer)
    answers.with_numbers(answer), answers.last_box(text[-MAX_RESPONSE:])
    answers.of_one_modulus(answer, GOLD), answers.in_order(answer), _plain(answer, "0.5")
    assert time.process_time() - start < 0.5


def test_no_code_is_run(math, tmp_path):
    """Neither here nor in a worker: the canary is not made, and what is compiled is arithmetic."""
    canary = tmp_path / "canary"
    responses = code(str(canary))
    assert True not in judged(math, responses)
    assert not canary.exists() and "CANARY" not in os.environ

    script = (  # in one process, where all that is compiled from a text can be seen
        "import json, sys\n"
        "from eval.verify.worker import math_judge\n"
        "judge, seen = math_judge(), []\n"
        "judge('3+4', '7')\n"
        "def hook(event, args):\n"
        "    if event == 'compile' and isinstance(args[0], (str, bytes)):\n"
        "        places, frame = [], sys._getframe(1)\n"
        "        while frame:\n"
        "            places.append(frame.f_code.co_filename)\n"
        "            frame = frame.f_back\n"
        "        if '<frozen importlib._bootstrap>' not in places:  # a module's own texts\n"
        "            text = args[0] if isinstance(args[0], str) else args[0].decode()\n"
        "            seen.append((places[0], text))\n"
        "sys.addaudithook(hook)\n"
        "for text in json.load(open(sys.argv[1])):\n"
        "    try: judge(text, '7')\n"
        "    except Exception: pass\n"
        "import os\n"
        "assert 'CANARY' not in os.environ\n"
        "print(json.dumps(seen))\n"
    )
    arithmetic = ["the answer is 3+4*2 dollars", "so 3^2-(1/2) it is"]
    (tmp_path / "texts").write_text(json.dumps([*responses, *NOT_IT, *LISTS, *arithmetic]))
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "texts")],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    compiled = json.loads(done.stdout)
    of_parser = [text for place, text in compiled if place.endswith("sympy_parser.py")]
    of_parser = [text for text in of_parser if text != "from sympy import *"]  # its own
    assert of_parser  # the arithmetic was: otherwise the hook sees nothing
    names = {name for text in of_parser for name in re.findall(r"[^\W\d]\w*", text)}
    assert names <= {"Integer", "Float", "Add", "Mul", "Pow", "evaluate", "False"}, names
    assert not [text for place, text in compiled if "canary" in text.lower()]
    assert not canary.exists()


@pytest.mark.parametrize(
    "deed",
    [
        "open(canary, 'w')",
        "os.open(canary, os.O_CREAT | os.O_WRONLY)",
        "os.system(f'touch {canary}')",
        "os.mkdir(canary)",
        "os.environ.__setitem__('X', '1')",
        "subprocess.run(['touch', canary])",
        "socket.create_connection(('127.0.0.1', 1))",
    ],
)
def test_the_wall_of_a_worker(tmp_path, deed):
    """Should code run in spite of all, what it can do is compute."""
    canary = tmp_path / "canary"
    script = (
        "import os, socket, subprocess, sys\n"
        "from eval.verify.worker import wall\n"
        "canary = sys.argv[1]\n"
        "sys.addaudithook(wall)\n"
        f"try: {deed}\n"
        "except PermissionError as error: print('refused', error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(canary)], capture_output=True, text=True, cwd=ROOT
    )
    assert done.stdout.startswith("refused"), done.stderr
    assert not canary.exists()


def held():
    """Open files and children of this process."""
    pids = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return len(os.listdir("/proc/self/fd")), len(pids)


def memory():
    """Megabytes that this process holds."""
    return int(re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


def test_no_worker_leaks(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(
        "import os\ndef judge(answer, gold):\n    if '!' in answer: os._exit(1)\n    return True\n"
    )
    before = held()
    with Verifier(f"{path}:judge", 2, LIMIT) as verifier:
        verifier(["1.0", "2.0"], ["1", "2"])
        busy = held()
        for i in range(0, 5_000, 1_000):
            responses = [f"{x}.0" for x in range(i, i + 1_000)] + [f"{i}!"]
            verdicts = verifier(responses, ["7"] * 1_001)
            assert verdicts == [True] * 1_000 + [None]  # a worker was lost, and replaced
            assert held() == busy
    assert held() == before


@pytest.mark.slow
def test_100_000_verdicts_leave_nothing_behind(tmp_path, monkeypatch):
    """New answers, old ones, hostile ones, each of these once; in each round one ends a worker."""
    monkeypatch.setattr("eval.verify.verifier.CACHE_SIZE", 1_000)  # full from the first rounds on
    rounds, count, new = 20, 5_000, 600
    hostile = [*LISTS, *NOT_IT, *SLOW, *code(str(tmp_path / "canary"))]
    before, pids, sizes, undecided = held(), set(), [], 0
    with Verifier("math", 2, LIMIT) as verifier:
        verifier(["1.5", "2.5"], ["7", "7"])
        busy = held()
        for i in range(rounds):
            share = [f"9^{{9^{{9^{{{i}9}}}}}}!", *hostile[i::rounds]]
            numbers = range(i * new, (i + 1) * new)
            responses = [rf"So \boxed{{{x}.0}}." for x in numbers]
            golds = [str(x + x % 2) for x in numbers]  # of the odd ones another number
            old = count - len(share) - new
            responses += [rf"It is \boxed{{{x % 64}/3}}." for x in range(old)]
            golds += [rf"\frac{{{x % 64}}}{{3}}" for x in range(old)]
            verdicts = verifier([*responses, *share], [*golds, *[GOLD] * len(share)])
            assert verdicts[: count - len(share)] == [True, False] * (new // 2) + [True] * old
            found = verdicts[count - len(share) :]
            assert found[0] is None and True not in found
            undecided += found.count(None)
            assert held() == busy  # those that were ended are replaced
            pids |= {worker.process.pid for worker in verifier._workers}
            sizes.append(memory())
    assert held() == before
    assert len(pids) >= 2 + rounds
    assert sizes[-1] < sizes[rounds // 4] + 8, sizes
    print(f"{rounds * count} verdicts, {undecided} undecided, {len(pids)} workers, {sizes}")


@QUICK
@given(RESPONSES)
def test_any_text_can_be_read(text):
    answer = answers.extract(text)
    assert isinstance(answer, str) and len(answer) <= len(text) + 9 * text.count("box") + 9
    for found in (answers.canonical(answer), answers.last_box(text), answers.with_numbers(text)):
        assert isinstance(found, str)
    assert answers.several(answer) in (True, False)


def never_right(verifier, responses):
    """GOLD is in none of them, and what they can come to is another number."""
    whole = [x for x in responses if GOLD not in re.sub(r"\W", "", x)]
    assert True not in judged(verifier, whole)


@settings(QUICK, max_examples=20)
@given(st.lists(RESPONSES, min_size=15, max_size=15))
def test_no_response_of_pieces_is_right(math, responses):
    never_right(math, responses)


@pytest.mark.slow
@settings(LONG, max_examples=1_000)
@given(st.lists(RESPONSES, min_size=20, max_size=20))
def test_no_response_of_pieces_is_right_at_length(math, responses):
    never_right(math, responses)
