"""What ends a run, where it may, and what is there afterwards."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.commands import ROOT, free_port, run
from trainers.train import checkpoint

CHAOS = str(ROOT / "tests" / "launched" / "chaos.py")
# each a life of one run: (where and what happens, exit code)
LIVES = [
    ("evaluation:1", -9),
    ("metrics:1:readonly", 1),
    ("sampling:2", -9),
    ("checkpoint:1", -9),
    ("update:3", -9),
    ("metrics:2", -9),
    ("checkpoint:1:full", 1),
    ("metrics:1:readonly", 1),
    ("sampling:2:term", 130),
    ("publishing:1", -9),
    ("loading:1:flip", 0),
]


@pytest.mark.slow
def test_a_run_of_many_lives(tmp_path, base_path):
    places, codes = zip(*LIVES, strict=True)
    done = run(CHAOS, "--out", str(tmp_path), "--at", *places, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["same"] and found["lives"] == [[*codes, 0]]
    said = (tmp_path / "cut0.log").read_text()
    outlook = "once it can be written, the same command"
    assert f"Read-only file system: '{tmp_path}/cut0/metrics.jsonl'; {outlook} starts again" in said
    assert f"Read-only file system: '{tmp_path}/cut0/metrics.jsonl'; {outlook} goes on from" in said
    assert f"File too large: '{tmp_path}/cut0/checkpoints/step_000004'; {outlook} goes on" in said
    assert "interrupted; step 5 is saved, and the same command goes on" in said
    assert "step_000006 is damaged (optimizer.safetensors); set aside" in said
    assert "going on from step 5" in said.partition("is damaged")[2]
    assert "Traceback" not in said


LONG = [
    *("train.steps=100000", "train.prompts=4", "train.samples=4", "objective.k=4", "eval.k=4"),
    *("eval.problems=4", "eval.samples=4", "eval.every=0", "train.save_every=0", "run.threads=1"),
    *("logging.kl_every=0", "run.dir=run"),
]


@pytest.fixture
def two_ranks(tmp_path, base_path):
    """The launcher of two ranks that train, of a session of its own as in a terminal."""
    start = [str(Path(sys.executable).parent / "deepspeed"), "--num_gpus", "2"]
    train = [str(ROOT / "launch" / "train.py"), "--config", str(ROOT / "configs" / "pcgrad.yaml")]
    with (tmp_path / "said").open("w") as out:
        launcher = subprocess.Popen(
            [*start, "--master_port", free_port(), *train, *LONG],
            cwd=tmp_path,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    try:
        until = time.monotonic() + 120
        while len(steps(tmp_path)) < 3:
            assert time.monotonic() < until and launcher.poll() is None
            time.sleep(0.1)
        below = psutil.Process(launcher.pid).children(True)
        yield launcher, [x for x in below if "--local_rank" in " ".join(x.cmdline())]
    finally:
        with suppress(ProcessLookupError):
            os.killpg(launcher.pid, signal.SIGKILL)
        launcher.wait()


def steps(folder):
    path = folder / "run" / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(x)["step"] for x in lines]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["ctrl-c", "orphaned", "killed"])
def test_two_ranks(two_ranks, tmp_path, how):
    launcher, ranks = two_ranks
    assert len(ranks) == 2
    if how == "ctrl-c":
        os.killpg(launcher.pid, signal.SIGINT)
    elif how == "orphaned":
        launcher.terminate()  # nothing that it started hears of it
    else:
        ranks[1].kill()
    assert launcher.wait(30) != 0
    _, alive = psutil.wait_procs(ranks, 30)
    assert not alive
    said = (tmp_path / "said").read_text()
    if how == "killed":
        assert "rank 1 on " in said and "was lost, and so all ranks end" in said
        return
    last = steps(tmp_path)[-1]
    assert f"run: interrupted; step {last} is saved, and the same command goes on" in said
    assert checkpoint.latest(tmp_path / "run")[1]["step"] == last
