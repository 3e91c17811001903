"""The progress of long work, on a terminal and in a log."""

import re

import pytest

import eval.progress
from eval.progress import progress

LINE = r"\d\d:\d\d:\d\d runs/x: (\d) of 5, \d\d:0\d passed, .* left(, pass@1=0.5)?"


@pytest.mark.parametrize(("every", "seen"), [(0.0, "12345"), (1000.0, "1")])
def test_a_log_gets_lines_now_and_then(capsys, monkeypatch, every, seen):
    monkeypatch.setattr(eval.progress, "EVERY", every)
    with progress(5, 1, "runs/x") as bar:
        for _ in range(4):
            bar.set_postfix({"pass@1": "0.5"}, refresh=False)
            bar.update()
    lines = capsys.readouterr().err.splitlines()
    found = [re.fullmatch(LINE, line) for line in lines]
    assert all(found), lines
    assert "".join(x[1] for x in found) == seen


def test_a_terminal_gets_a_bar(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with progress(5, 0, "runs/x") as bar:
        bar.update(5)
    said = capsys.readouterr().err
    assert "\r" in said and "100%|" in said and " passed, " not in said


def test_without_a_known_total(capsys):
    with progress(None, 3, "answers"):
        pass
    assert "answers: 3 of ?, " in capsys.readouterr().err


def test_a_quiet_one_says_nothing(capsys):
    with progress(5, 0, "runs/x", quiet=True) as bar:
        bar.update(5)
    assert capsys.readouterr().err == ""
