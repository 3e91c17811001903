import signal
import subprocess
import sys
import threading
import time
from collections import Counter

import pytest

from eval.verify.verifier import AHEAD, Verifier, VerifierFailed, _plain
from surgery.user_code import UserCodeError
from tests.commands import ROOT


@pytest.fixture(scope="module")
def math():
    with Verifier("math", workers=2, time_limit=2.0) as verifier:
        yield verifier


@pytest.mark.parametrize(
    ("answer", "gold", "verdict"),
    [
        ("7", "7", True),
        (r"so it is $\boxed{\frac12}$", "0.5", True),
        (r"\boxed{10{,}000}", "10000", True),
        ("3+4", "7", True),
        ("8", "7", False),
        ("no idea", "7", False),
        ("", "7", False),
        ("\x00\xff\ud800", "7", False),
    ],
)
def test_math(math, answer, gold, verdict):
    assert math([answer], [gold]) == [verdict]


@pytest.mark.parametrize("hedge", ["either 3 or 5", "3 or 5", "3, 5", r"3 \text{ or } 5", "3; 5"])
@pytest.mark.parametrize(
    "form", [r"\boxed{%s}", "#### %s", "Answer: %s", "the answer is %s.", "%s"]
)
def test_a_list_or_a_hedge_is_no_match_for_one_value(math, hedge, form):
    assert math([form % hedge] * 2, ["3", "5"]) == [False, False]


@pytest.mark.parametrize(
    "gold",
    [
        *("3, 5", r"\{3,5\}", "(1,2)", "[1,2)", r"\left(-\infty, 2\right] \cup (3, \infty)"),
        *(
            r"\text{Evelyn}",
            "Friday",
            r"\text{(B)}",
            "5:30",
            "1010_2",
            r"x \le 3 \text{ or } x > 5",
        ),
        *(
            r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}",
            r"18\%",
            r"\$18.90",
            r"90^\circ",
            "10{,}000",
            "y=2x+3",
        ),
    ],
)
def test_golds_of_any_form_match_themselves(math, gold):
    assert math([rf"so it is $\boxed{{{gold}}}$."], [gold]) == [True]
    assert math([r"\boxed{12345}"], [gold]) == [False]


@pytest.mark.parametrize(
    ("answer", "gold", "verdict"),
    [
        (r"\boxed{5, 3}", "3,5", True),
        (r"\boxed{3} and \boxed{5}", "3, 5", True),
        (r"\boxed{[0.5, 3)}", r"\left[\frac12, 3\right)", True),
        (r"\boxed{(2,1)}", "(1,2)", False),
        (r"\boxed{18\text{ dollars}}", "18", True),
        ("Answer: 18 dollars", "18", True),
        (r"\boxed{\$18}", "18", True),
        (r"\boxed{18\%}", "18", True),
        (r"\boxed{3}, no: it is \boxed{5}", "3", False),
        ("She makes 9*2 = $18 every day.", "18", True),  # no mark: the last line
        ("It is 18.\nThat is a lot.", "18", False),
        (r"\boxed{18}", r"Then $x = \boxed{18}$ of \$20.", True),  # a gold that is a solution
    ],
)
def test_answers_by_their_marks(math, answer, gold, verdict):
    assert math([answer], [gold]) == [verdict]


def test_hostile_answers_neither_hang_nor_hurt(math, monkeypatch):
    hostile = [r"\boxed{9^{9^{9^9}}}", "9^{9^{9^9}}", "(" * 100_000, r"\boxed{" + "{" * 100_000]
    math(["8.5"], ["7"])  # the workers are up
    replaced = []
    replace = Verifier._replace
    monkeypatch.setattr(
        Verifier, "_replace", lambda self, old: replaced.append(old) or replace(self, old)
    )
    verdicts = math([*hostile, "7.0"], ["7"] * 5)
    assert True not in verdicts[:4] and verdicts[4] is True
    assert len(replaced) <= 2 * len(hostile)  # a worker, and so a time limit, for each trial
    assert math(["14/2"], ["7"]) == [True]  # killed workers were replaced


def test_repeated_pairs_are_asked_once(math):
    start = time.monotonic()
    assert math(["6.0"] * 100_000, ["6"] * 100_000) == [True] * 100_000
    assert time.monotonic() - start < 5


def test_a_function_of_the_user(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "import os, time\n"
        "def judge(answer, gold):\n"
        "    if answer == 'sleep': time.sleep(60)\n"
        "    if answer == 'die': os._exit(1)\n"
        "    if answer == 'raise': raise RuntimeError\n"
        "    print('chatter')\n"
        "    return answer.lower() == gold\n"
    )
    with Verifier(f"{path}:judge", workers=2, time_limit=1.0) as verifier:
        verdicts = verifier(["YES", "no", "sleep", "die", "raise", "Yes"], ["yes"] * 6)
    assert verdicts == [True, False, None, None, None, True]


WRONG = (  # a function of the user's own, and what is said of it
    (["def judge(answer, gold):", "    return answer.wrong"], "AttributeError: 'str' object", 2),
    (["import math", "def judge(answer):", "    return True"], "TypeError: judge() takes 1", 2),
    (
        ["def judge(answer, gold):", "    return 'yes'"],
        "TypeError: returned 'yes' instead of True",
        1,
    ),
    (
        ["def judge(answer, gold):", "    return True, 5"],
        "TypeError: returned (True, 5) instead of",
        1,
    ),
    (["def judge(answer, gold):", "    return 0.5"], "TypeError: returned 0.5 instead of True", 1),
    (["def judge(answer, gold):", "    import os", "    os._exit(1)"], "took longer than", None),
    (["def judge(answer, gold):", "    while True: pass"], "took longer than 1 s, or ended", None),
)


@pytest.mark.parametrize(("code", "said", "line"), WRONG, ids=lambda x: "")
def test_a_function_that_cannot_judge_is_refused(tmp_path, code, said, line):
    (tmp_path / "mine.py").write_text("\n".join(code) + "\n")
    name = f"{tmp_path}/mine.py:judge"
    with pytest.raises(UserCodeError) as error:
        Verifier(name, workers=1, time_limit=1.0).try_out("7")
    (told,) = str(error.value).splitlines()
    assert told.startswith(f"task.verifier = {name}: {said}"), told
    if line:
        assert f"({tmp_path}/mine.py, line {line}), on 1 of 1 answers; correct" in told


@pytest.mark.parametrize(
    ("value", "verdict"),
    [("True", True), ("np.bool_(1)", True), ("np.bool_(0)", False), ("None", None)],
)
def test_truth_of_several_kinds(tmp_path, capsys, value, verdict):
    code = f"import numpy as np\ndef judge(answer, gold):\n    return {value}, answer[:1]\n"
    (tmp_path / "mine.py").write_text(code)
    with Verifier(f"{tmp_path}/mine.py:judge", workers=1) as verifier:
        assert verifier.judge(["13", "8"], ["8", "8"]) == [(verdict, "1"), (verdict, "8")]
        verifier.try_out("8")
    said = capsys.readouterr().err
    told = f"judges the gold '8' against itself as {verdict}, not True; correct the function, "
    assert (told in said) is said.startswith("warning: ") is (verdict is not True)


@pytest.mark.parametrize("value", ["1", "0", "1.0", "np.int64(1)"])
def test_a_number_is_no_verdict(tmp_path, value):
    """It is refused before any work depends on it."""
    code = f"import numpy as np\ndef judge(answer, gold):\n    return {value}\n"
    (tmp_path / "mine.py").write_text(code)
    with pytest.raises(UserCodeError, match="instead of True, False, None or"):
        Verifier(f"{tmp_path}/mine.py:judge", workers=1).try_out("8")


def test_a_function_that_fails_now_and_then_is_told_once(tmp_path, capsys):
    """And one that fails on all answers ends the run, though the gold was right."""
    (tmp_path / "mine.py").write_text("def judge(answer, gold):\n    return int(answer) == 7\n")
    with Verifier(f"{tmp_path}/mine.py:judge", workers=2) as verifier:
        verifier.try_out("7")
        assert verifier(["7", "a", "8", "a"], ["7"] * 4) == [True, None, False, None]
        assert verifier(["7", "b", "b"], ["7"] * 3) == [True, None, None]
        (said,) = capsys.readouterr().err.splitlines()
        place = f"({tmp_path}/mine.py, line 2), on 2 of 4 answers; these stay undecided"
        assert "ValueError: invalid literal for int() with base 10: 'a' " + place in said
        with pytest.raises(UserCodeError, match=r"line 2\), on 2 of 2 answers; correct"):
            verifier(["a", "b"], ["7"] * 2)


def test_a_function_gets_the_whole_response(tmp_path):
    """What votes are counted by is its end, and what is long is not kept to be asked again."""
    path = tmp_path / "mine.py"
    path.write_text("def judge(answer, gold): return len(answer) == int(gold)")
    answer = "x" * 100_000 + "y"
    with Verifier(f"{path}:judge", workers=1) as verifier:
        judged = verifier.judge([answer, answer, "12"], ["100001", "4096", "2"])
        assert [(verdict, len(read)) for verdict, read in judged] == [
            (True, 4_096),
            (False, 4_096),
            (True, 2),
        ]
        assert list(verifier._cache) == [("12", "2")]
    assert Verifier("exact").judge([answer], [answer]) == [(True, answer[-4_096:])]


def test_a_bad_pair_costs_only_its_own_verdict(tmp_path):
    """Though others wait in a row behind it, and though all in a row take longer than the limit."""
    (tmp_path / "mine.py").write_text(
        "import os, time\n"
        "def judge(answer, gold):\n"
        "    if answer.startswith('sleep'): time.sleep(60)\n"
        "    if answer.startswith('die'): os._exit(1)\n"
        "    if answer.startswith('late'): time.sleep(0.3)\n"
        "    return answer.endswith(gold)\n"
    )
    answers = [f"{i} {i % 3}" for i in range(60)]
    answers[7], answers[8], answers[31], answers[59] = "sleep 1", "die 1", "die 2", "sleep 2"
    answers += [f"late {i} 1" for i in range(8)]
    right = [None if x[:3] in ("sle", "die") else x.endswith("1") for x in answers]
    with Verifier(f"{tmp_path}/mine.py:judge", workers=1, time_limit=1.0) as verifier:
        assert verifier(answers, ["1"] * len(answers)) == right


def test_a_worker_that_is_killed_while_it_waits_costs_no_verdict(tmp_path):
    (tmp_path / "mine.py").write_text("def judge(answer, gold):\n    return answer == gold\n")
    with Verifier(f"{tmp_path}/mine.py:judge", workers=1) as verifier:
        assert verifier(["1"], ["1"]) == [True]
        (worker,) = verifier._workers
        worker.process.kill()
        worker.process.wait()
        assert verifier(["2", "3"], ["2", "2"]) == [True, False]
        assert verifier._workers != [worker]


ONCE = (
    "import os, signal, time\n"
    "def judge(answer, gold):\n"
    "    if answer in ('die', 'sleep', 'stop') and not os.path.exists('{canary}' + answer):\n"
    "        open('{canary}' + answer, 'w')\n"
    "        if answer == 'die': os._exit(1)\n"
    "        if answer == 'sleep': time.sleep(60)\n"
    "        if answer == 'stop': os.kill(os.getpid(), signal.SIGSTOP)\n"
    "    return len(answer) == int(gold)\n"
)


def test_what_fails_once_is_tried_again(tmp_path):
    """In a fresh worker: one that died, ran out of time, or was stopped costs no verdict."""
    (tmp_path / "mine.py").write_text(ONCE.format(canary=tmp_path / "met-"))
    answers = ["1", "die", "12", "sleep", "123", "stop", "1234"]
    with Verifier(f"{tmp_path}/mine.py:judge", workers=2, time_limit=1.0) as verifier:
        assert verifier(answers, [str(len(x)) for x in answers]) == [True] * len(answers)
    assert len(list(tmp_path.glob("met-*"))) == 3


def test_no_verdict_is_kept_where_there_is_none(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import os\n"
        "def judge(answer, gold):\n"
        f"    if not os.path.exists('{tmp_path}/well'): os._exit(1)\n"
        "    return answer == gold\n"
    )
    with Verifier(f"{tmp_path}/mine.py:judge", workers=1) as verifier:
        assert verifier(["1"], ["1"]) == [None]
        (tmp_path / "well").touch()
        assert verifier(["1"], ["1"]) == [True]


@pytest.mark.parametrize("ended", [False, True])
def test_a_stopped_worker_holds_nobody_up(tmp_path, ended):
    """Its pipe takes 64 kB and it is sent a megabyte; it is ended at the limit, if not before."""
    (tmp_path / "mine.py").write_text(ONCE.format(canary=tmp_path / "met-"))
    with Verifier(f"{tmp_path}/mine.py:judge", workers=1, time_limit=2.0) as verifier:
        assert verifier(["1"], ["1"]) == [True]
        (worker,) = verifier._workers
        worker.process.send_signal(signal.SIGSTOP)
        end = threading.Timer(0.5 if ended else 30, worker.process.kill)
        end.start()
        start = time.monotonic()
        answers = ["x" * 1_000_000, "xy" * 500_000]
        assert verifier(answers, ["1000000"] * 2) == [True, True]
        assert time.monotonic() - start < 25
        assert verifier._workers != [worker]
        end.cancel()


def test_an_old_worker_is_replaced(tmp_path, monkeypatch):
    monkeypatch.setattr("eval.verify.verifier.LIFETIME", 20)
    (tmp_path / "mine.py").write_text(
        "import os\ndef judge(answer, gold):\n    return True, str(os.getpid())\n"
    )
    with Verifier(f"{tmp_path}/mine.py:judge", workers=1) as verifier:
        judged = verifier.judge([*map(str, range(70))], ["1"] * 70)
    assert all(right for right, _ in judged)
    lives = Counter(pid for _, pid in judged)
    assert len(lives) == 4 and max(lives.values()) < 20 + AHEAD


def test_integers_are_told_apart_as_math_verify_does(tmp_path):
    """Without asking it."""
    (tmp_path / "mine.py").write_text(
        "from eval.verify.worker import math_judge\njudge = math_judge()\n"
    )
    forms = ["%s", r"\boxed{%s}", r"\$%s", "$%s$", r"\text{%s}", r"\boxed{\text{%s}}", " %s "]
    numbers = ["0", "7", "-7", "70", "1000", "1{,}000", "1,000", "999999999999999"]
    pairs = [(f % x, y) for f in forms for x in numbers for y in ("7", "1,000", "999999999999998")]
    pairs = [x for x in pairs if _plain(*x) is not None]
    assert len(pairs) > 150
    with Verifier(f"{tmp_path}/mine.py:judge", workers=1) as verifier:
        of_math_verify = verifier(*zip(*pairs, strict=True))
    assert [_plain(*x)[0] for x in pairs] == of_math_verify


def test_closing_ends_the_workers():
    with Verifier("math", workers=2) as verifier:
        verifier(["1.5", "2.5"], ["3", "3"])
        processes = [worker.process for worker in verifier._workers]
        assert len(processes) == 2
    assert all(process.poll() is not None for process in processes)


def test_a_judge_that_cannot_start_is_told(tmp_path):
    (tmp_path / "broken.py").write_text("import no_such_module\n")
    verifier = Verifier(f"{tmp_path}/broken.py:judge")
    with verifier, pytest.raises(VerifierFailed, match="no_such_module"):
        verifier(["a"], ["b"])


@pytest.mark.parametrize(
    ("answer", "gold", "right"),
    [
        (r"\boxed{(2,100)}", "(2, 100)", True),
        (r"\boxed{(2, 100)}", "(2,100)", True),
        (r"\boxed{[0,100]}", "[0, 100]", True),
        (r"\boxed{\{100,200\}}", r"\{100, 200\}", True),
        (r"\boxed{100,200}", "100, 200", True),
        (r"\boxed{300,2,1}", "1,2,300", True),
        (r"\boxed{100200}", "100, 200", False),
        (r"\boxed{100,200}", "100200", True),
        ("#### 1,234,567", "1234567", True),
    ],
)
def test_commas_part_or_group(math, answer, gold, right):
    assert math([answer], [gold]) == [right]


def test_a_worker_does_not_hear_what_is_meant_for_the_run(tmp_path):
    """Ctrl-C reaches all processes of a terminal, and the step that is finished needs verdicts."""
    (tmp_path / "judge.py").write_text("def judge(answer, gold):\n    return answer == gold\n")
    with Verifier(f"{tmp_path}/judge.py:judge", workers=1) as verifier:
        assert verifier(["1"], ["1"]) == [True]
        (worker,) = verifier._workers
        for number in (signal.SIGINT, signal.SIGTERM):
            worker.process.send_signal(number)
        assert verifier(["2", "3"], ["2", "2"]) == [True, False]
        assert verifier._workers == [worker]
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_a_worker_whose_parent_is_gone_ends_by_itself(tmp_path):
    (tmp_path / "mine.py").write_text("def forever(answer, gold):\n    while True: pass\n")
    code = f"from eval.verify.worker import serve; serve({f'{tmp_path}/mine.py:forever'!r}, 0.1)"
    worker = subprocess.run(
        [sys.executable, "-c", code], input=b'[["1", "1"]]\n', cwd=ROOT, timeout=60
    )
    assert worker.returncode == -signal.SIGALRM
