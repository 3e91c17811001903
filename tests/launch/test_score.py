"""Scores of a model and of generations made elsewhere."""

import json

import pytest

from tests.conftest import ROOT, run

SCORE = str(ROOT / "launch" / "score.py")
CONFIG = str(ROOT / "configs" / "passk.yaml")


def write(path, problems):
    path.write_text("".join(json.dumps(x) + "\n" for x in problems))


def test_a_model_scores_as_in_training(tmp_path, base_path, twin, base):
    options = ["eval.problems=200", "--out", "out"]
    done = run(SCORE, "--model", base_path, "--config", CONFIG, *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["n"], summary["problems"]) == (32, 200)
    exact = twin.success(base).pass_at([1, 8])
    for name in ("pass@1", "pass@8"):
        x = summary["scores"][name]
        assert x["low"] - 0.03 < exact[name] < x["high"] + 0.03
    again = run(SCORE, "--model", base_path, "--config", CONFIG, *options, cwd=tmp_path)
    assert again.returncode == 2 and "holds files already" in again.stderr


def test_responses_by_hand(tmp_path):
    write(
        tmp_path / "r.jsonl",
        [
            {"id": 1, "gold": "1/2", "responses": [r"\boxed{0.5}", "0.5", "2", "no"]},
            {"id": 2, "gold": "7", "responses": ["8", "9", "10", "11"]},
        ],
    )
    done = run(SCORE, "--responses", "r.jsonl", "--out", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    scores = json.loads((tmp_path / "out" / "summary.json").read_text())["scores"]
    assert {name: x["value"] for name, x in scores.items()} == {
        "pass@1": pytest.approx(0.25),
        "pass@2": pytest.approx((1 - 1 / 6) / 2),
        "pass@4": pytest.approx(0.5),
    }
    lines = (tmp_path / "out" / "problems.jsonl").read_text().splitlines()
    assert [json.loads(x)["c"] for x in lines] == [2, 0]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 1: not JSON"),
        ('{"id": 1, "gold": "1"}', "line 1: has no responses"),
        ('{"id": 1, "gold": "1", "responses": []}', "line 1: responses is empty"),
        ('{"id": 1, "gold": "1", "responses": [1]}', "line 1: responses must be"),
        ('{"id": 1, "gold": "1", "responses": ["1"]}\n' * 2, "line 2: id 1 was met before"),
        ("", "holds no problem"),
    ],
)
def test_lines_that_cannot_be_scored(tmp_path, line, message):
    (tmp_path / "r.jsonl").write_text(line)
    done = run(SCORE, "--responses", "r.jsonl", "--verifier", "exact", cwd=tmp_path)
    assert done.returncode == 2 and message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_wrong_arguments(tmp_path):
    for options in ([], ["--responses", "gone.jsonl"], ["--model", "./gone", "--config", CONFIG]):
        done = run(SCORE, *options, cwd=tmp_path)
        assert done.returncode == 2 and "Traceback" not in done.stderr
