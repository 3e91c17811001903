"""Many runs, one table."""

import json
import math

import pytest

from eval.compare import T_95, compare, find_summaries, render, t_interval
from tests.conftest import ROOT, run

ABLATE, COMPARE = (str(ROOT / "launch" / f"{name}.py") for name in ("ablate", "compare"))
SMALL = "train.steps=2 train.prompts=8 train.samples=4 objective.k=4 eval.k=4 eval.problems=20"


def configs(*names):
    return [str(ROOT / "configs" / f"{name}.yaml") for name in names]


def test_runs_sweeps_skips_and_compares(tmp_path, base_path):
    command = [ABLATE, "--configs", *configs("passk", "mix"), "--seeds", "0", "1", "--jobs", "2"]
    command += ["--out", "out", *SMALL.split(), "eval.samples=8", "surgery.mix=0.1,0.5"]
    first = run(*command, cwd=tmp_path)
    assert first.returncode == 0, first.stdout + first.stderr
    assert first.stdout.count(": done in") == 8
    summaries = find_summaries([tmp_path / "out"])
    assert len(summaries) == 8 and {x["seed"] for x in summaries} == {0, 1}
    assert len({x["run"] for x in summaries}) == 4  # two configurations, two values
    assert (tmp_path / "out" / "compare.md").read_text().count("\n") == 6
    again = run(*command, cwd=tmp_path)
    assert again.stdout.count("was finished") == 8
    done = run(COMPARE, str(tmp_path / "out"), "--out", "table", cwd=tmp_path)
    assert done.returncode == 0 and "lowest pass@1" in done.stdout
    rows = json.loads((tmp_path / "table" / "compare.json").read_text())
    assert [row["seeds"] for row in rows] == [2, 2, 2, 2]


def test_a_failing_run_does_not_stop_the_others(tmp_path, base_path):
    (tmp_path / "good.yaml").write_text("train: {steps: 1, prompts: 4}\neval: {problems: 10}\n")
    (tmp_path / "bad.yaml").write_text(
        "train: {steps: 1, prompts: 4}\neval: {problems: 10}\nmodel: {path: nowhere}\n"
    )
    done = run(ABLATE, "--configs", "bad.yaml", "good.yaml", "--out", "out", cwd=tmp_path)
    assert done.returncode == 1
    assert "bad seed 0: FAILED" in done.stdout and "good seed 0: done" in done.stdout


def test_mistakes_are_refused_before_anything_runs(tmp_path):
    done = run(ABLATE, "--configs", *configs("mix"), "surgery.mix=0.1,-1", cwd=tmp_path)
    assert done.returncode == 2 and "surgery.mix = -1" in done.stderr
    done = run(COMPARE, str(tmp_path), cwd=tmp_path)
    assert done.returncode == 2 and "holds no finished run" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_t_interval_by_hand():
    x = t_interval([1.0, 2.0, 3.0])
    assert x["value"] == 2 and x["high"] - 2 == pytest.approx(4.303 / math.sqrt(3), rel=1e-4)
    assert t_interval([5.0]) == {"value": 5.0, "low": None, "high": None}


def test_quantiles():
    """Each is the point that Student's density leaves 2.5 % beyond."""
    for freedom, quantile in enumerate(T_95, 1):
        scale = math.gamma((freedom + 1) / 2) / math.gamma(freedom / 2)
        scale /= math.sqrt(freedom * math.pi)
        n = 20_000
        grid = (quantile * (i + 0.5) / n for i in range(n))
        inside = sum((1 + t * t / freedom) ** (-(freedom + 1) / 2) for t in grid)
        assert 0.5 - scale * inside * quantile / n == pytest.approx(
            0.025, abs=3e-5
        )  # three decimals


def test_the_table_by_hand():
    def summary(seed, after):
        exact = {
            "before": {"pass@1": 0.5, "pass@8": 0.8},
            "after": {"pass@1": after, "pass@8": 0.9},
            "lowest_pass@1": after - 0.1,
            "frontier_share": None if after < 0.5 else 0.4,
        }
        return {"run": "x", "group": "x", "seed": seed, "k": 8, "seconds": 10.0, "exact": exact}

    (row,) = compare([summary(0, 0.6), summary(1, 0.7)])
    assert row["pass@1"]["change"]["value"] == pytest.approx(0.15)
    assert row["lowest_pass@1"] == pytest.approx(0.5) and row["frontier_share"] == 0.4
    assert "+0.150" in render([row]) and render([row], markdown=True).startswith("| run |")
    (row,) = compare([summary(0, 0.6), summary(1, 0.4)])
    assert row["frontier_share"] is None
