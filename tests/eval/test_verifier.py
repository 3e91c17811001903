import time

import pytest

from eval.verifier import Verifier, VerifierFailed


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


def test_hostile_answers_neither_hang_nor_hurt(math):
    hostile = [r"\boxed{9^{9^{9^9}}}", "9^{9^{9^9}}", "(" * 100_000, r"\boxed{" + "{" * 100_000]
    math(["8"], ["7"])  # the workers are up
    start = time.monotonic()
    verdicts = math([*hostile, "7.0"], ["7"] * 5)
    assert time.monotonic() - start < 15
    assert True not in verdicts[:4] and verdicts[4] is True
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


def test_closing_ends_the_workers():
    with Verifier("math", workers=2) as verifier:
        verifier(["1", "2"], ["3", "3"])
        processes = [worker.process for worker in verifier._workers]
        assert len(processes) == 2
    assert all(process.poll() is not None for process in processes)


def test_a_judge_that_cannot_start_is_told(tmp_path):
    (tmp_path / "broken.py").write_text("import no_such_module\n")
    verifier = Verifier(f"{tmp_path}/broken.py:judge")
    with verifier, pytest.raises(VerifierFailed, match="no_such_module"):
        verifier(["a"], ["b"])
