"""Many runs, one table."""

import json
import signal
import subprocess
import sys
import time

import pytest

from eval.report.runs import find_runs, grouped
from tests.commands import ROOT, in_process, run

ABLATE, COMPARE = (str(ROOT / "launch" / f"{name}.py") for name in ("ablate", "compare"))
SMALL = "train.steps=2 train.prompts=8 train.samples=4 objective.k=4 eval.k=4 eval.problems=20"


def configs(*names):
    return [str(ROOT / "configs" / f"{name}.yaml") for name in names]


def test_a_sweep_over_all_files_leaves_out_the_roots(tmp_path):
    everything = sorted(str(x) for x in (ROOT / "configs").glob("*.yaml"))
    done = in_process(ABLATE, "--configs", *everything, "--dry-run", cwd=tmp_path)
    names = {line.split()[1] for line in done.stdout.splitlines() if "seed 0" in line}
    assert {"passk", "pcgrad", "mix"} <= names, done.stderr
    assert not names & {"base", "gsm8k_qwen2.5_0.5b", "math_r1_distill_qwen_7b"}
    line, *_ = done.stdout.splitlines()
    assert line.startswith("Left out, as other files extend them: ") and "base.yaml, " in line
    assert "chain.yaml (variants: " in line and f"{ROOT}/configs/chain/*.yaml)" in line
    variants = sorted(str(x) for x in (ROOT / "configs" / "gsm8k_qwen2.5_0.5b").glob("*.yaml"))
    done = in_process(ABLATE, "--configs", *variants, "--dry-run", cwd=tmp_path)
    assert done.stdout.count("seed 0: new") == 3


def test_runs_that_share_a_server_take_turns(tmp_path, base_path):
    """The weights of a run would reach the draws of another one."""
    own = ["train.rollouts=vllm", "rollout.urls=[http://127.0.0.1:1]", "rollout.sync_dir=sync"]
    command = [ABLATE, "--configs", *configs("mix"), "--seeds", "0", "1", "--dry-run", *own]
    refused = in_process(*command, "--jobs", "2", cwd=tmp_path)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr == (
        "--jobs = 2: runs with train.rollouts=vllm would share a server, which holds one run's "
        "weights; give --jobs 1, or a command for each server, with its rollout.urls and sync_dir\n"
    )
    assert in_process(*command, "--jobs", "1", cwd=tmp_path).returncode == 0
    for i in (1, 2):
        rollout = f"{{urls: ['http://127.0.0.1:{i}'], sync_dir: sync{i}}}"
        (tmp_path / f"{i}.yaml").write_text(f"extends: {configs('mix')[0]}\nrollout: {rollout}\n")
    apart = [ABLATE, "--configs", "1.yaml", "2.yaml", "--jobs", "2", "--dry-run", own[0]]
    assert in_process(*apart, cwd=tmp_path).returncode == 0


def test_runs_sweeps_skips_and_compares(tmp_path, base_path):
    command = [ABLATE, "--configs", *configs("mix"), "--seeds", "0", "1", "--jobs", "2"]
    command += ["--out", "out", *SMALL.split(), "eval.samples=8", "surgery.mix=0.1,0.5"]
    command += ["--curves", "train/entropy,exact/pass@4-exact/pass@1"]
    first = run(*command, cwd=tmp_path)
    assert first.returncode == 0, first.stdout + first.stderr
    assert first.stdout.count(": done in") == 4
    runs = find_runs([tmp_path / "out"])
    assert len(runs) == 4 and {x.summary["seed"] for x in runs} == {0, 1}
    assert list(grouped(runs)) == ["mix, λ = 0.1", "mix, λ = 0.5"]  # the values of the sweep
    assert (tmp_path / "out" / "compare.md").read_text().count("\n| ") == 3
    assert (tmp_path / "out" / "curves.png").exists()
    own = [x for x in runs if x.config["run.base"] is None]  # the base is evaluated once
    assert len(own) == 1
    assert len({(x.folder / "eval" / "before.jsonl").read_bytes() for x in runs}) == 1
    again = in_process(*command, cwd=tmp_path)
    assert again.stdout.count("was finished") == 4
    plan = in_process(*command, "--dry-run", cwd=tmp_path)
    assert plan.stdout.count("finished") == 4 and "about 0 minutes" in plan.stdout
    done = in_process(COMPARE, str(tmp_path / "out"), "--out", "table", cwd=tmp_path)
    assert done.returncode == 0 and "lowest pass@1" in done.stdout
    rows = json.loads((tmp_path / "table" / "compare.json").read_text())
    assert [row["seeds"] for row in rows] == [2, 2]


@pytest.mark.slow
def test_a_failing_run_does_not_stop_the_others(tmp_path, base_path):
    (tmp_path / "good.yaml").write_text("train: {steps: 1, prompts: 4}\neval: {problems: 10}\n")
    (tmp_path / "bad.yaml").write_text(
        "train: {steps: 1, prompts: 4}\neval: {problems: 10}\nmodel: {path: nowhere}\n"
    )
    done = run(ABLATE, "--configs", "bad.yaml", "good.yaml", "--out", "out", cwd=tmp_path)
    assert done.returncode == 1
    assert "bad seed 0: FAILED with exit code 2: model.path = nowhere: " in done.stdout
    assert "bad seed 0: FAILED" in done.stdout and "good seed 0: done" in done.stdout


def test_mistakes_are_refused_before_anything_runs(tmp_path):
    done = in_process(ABLATE, "--configs", *configs("mix"), "surgery.mix=0.1,-1", cwd=tmp_path)
    assert done.returncode == 2 and "surgery.mix = -1" in done.stderr
    done = in_process(COMPARE, str(tmp_path), cwd=tmp_path)
    assert done.returncode == 2 and "holds no finished run" in done.stderr
    done = in_process(COMPARE, str(tmp_path / "nope"), cwd=tmp_path)
    assert done.returncode == 2 and "nope: there is no such folder" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_without_effect_is_refused(tmp_path):
    """By the rule of any of the configurations; a single value for all runs is only warned of."""
    command = [ABLATE, "--configs", "mix", "pcgrad", "--dry-run"]
    done = in_process(*command, "surgery.mix=0.1,0.5", cwd=tmp_path)
    assert done.returncode == 2
    why = "surgery.mix = 0.1: rule pcgrad does not use it, and its runs would be equal; leave the"
    assert done.stderr.splitlines() == [f"{configs('pcgrad')[0]}: {why} {REMEDY}"]
    assert in_process(*command, "surgery.mix=0.1", cwd=tmp_path).returncode == 0
    assert in_process(*command, "surgery.cap=1,2", cwd=tmp_path).returncode == 2  # mix has none


REMEDY = "key or this configuration out of the sweep"


def small(tmp_path, steps=20):
    """A command whose runs have folders of a name that no other test has: some are killed by it."""
    out = tmp_path.name
    command = [sys.executable, ABLATE, "--configs", *configs("passk", "mix"), "--out", out]
    changes = SMALL.replace("train.steps=2", f"train.steps={steps}")
    return [*command, *changes.split(), "eval.samples=8", "train.save_every=1", "eval.every=0"]


def wait_for_step(metrics, step):
    for _ in range(4_000):  # 200 seconds: on a busy machine a run takes long to begin
        if metrics.exists() and metrics.read_text().count("\n") > step:
            return
        time.sleep(0.05)
    raise AssertionError(f"no step {step}")


@pytest.mark.slow
def test_a_killed_run_is_told_and_resumes(tmp_path, base_path):
    """One run's rank is killed in the middle: the other runs; the same command then resumes it."""
    process = subprocess.Popen(
        small(tmp_path), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    folder = tmp_path / tmp_path.name / "passk" / "seed0"
    wait_for_step(folder / "metrics.jsonl", 3)
    subprocess.run(["pkill", "-KILL", "-f", f"run.dir={folder.relative_to(tmp_path)} "], check=True)
    out, err = process.communicate(timeout=200)
    assert process.returncode == 1, out + err
    assert "passk seed 0: FAILED" in out and "mix seed 0: done" in out
    plan = run(*small(tmp_path)[1:], "--dry-run", cwd=tmp_path).stdout
    assert "passk seed 0: from step" in plan and "mix seed 0: finished" in plan
    again = run(*small(tmp_path)[1:], cwd=tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "passk seed 0: done" in again.stdout and "mix seed 0: was finished" in again.stdout
    assert "going on from step" in folder.with_suffix(".log").read_text()
    steps = [json.loads(x)["step"] for x in (folder / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(21))


def test_ctrl_c_ends_all_runs_and_leaves_them_resumable(tmp_path, base_path):
    process = subprocess.Popen(
        small(tmp_path, steps=400), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    folder = tmp_path / tmp_path.name / "passk" / "seed0"
    wait_for_step(folder / "metrics.jsonl", 2)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "the same command goes on" in err
    for _ in range(300):
        left = subprocess.run(["pgrep", "-f", f"run.dir={tmp_path.name}/"], capture_output=True)
        if left.returncode:
            break
        time.sleep(0.1)
    assert left.returncode, left.stdout
    plan = run(*small(tmp_path, steps=400)[1:], "--dry-run", cwd=tmp_path).stdout
    assert "passk seed 0: from step" in plan
