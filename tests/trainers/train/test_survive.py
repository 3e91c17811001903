"""What ends a run, where it may, and what is there afterwards."""

import errno
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
import torch

from tests.commands import ROOT, free_port, no_file_beyond, run
from tests.fakes import Still
from trainers.engine import stop
from trainers.train import checkpoint
from trainers.train.run_folder import unwritable

CHAOS = str(ROOT / "tests" / "chaos.py")
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


def test_a_run_of_many_lives(tmp_path, base_path):
    places, codes = zip(*LIVES, strict=True)
    done = run(CHAOS, "--out", str(tmp_path), "--at", *places, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["same"] and found["lives"] == [[*codes, 0]]
    said = (tmp_path / "cut0.log").read_text()
    outlook = "once it can be written, the same command"
    assert f"Read-only file system: '{tmp_path}/cut0/metrics.jsonl'; {outlook} begins anew" in said
    assert f"Read-only file system: '{tmp_path}/cut0/metrics.jsonl'; {outlook} goes on from" in said
    assert f"File too large: '{tmp_path}/cut0/checkpoints/step_000004'; {outlook} goes on" in said
    assert "interrupted; step 5 is saved, and the same command goes on" in said
    assert "step_000006 is damaged (optimizer.safetensors); set aside" in said
    assert "going on from step 5" in said.partition("is damaged")[2]
    assert "Traceback" not in said


@pytest.fixture
def saved(tmp_path):
    """(a run's folder with checkpoints of steps 1 and 2, the engine)."""
    (tmp_path / "checkpoints").mkdir()
    engine = Still()
    for engine.steps_taken in (1, 2):
        checkpoint.save(engine, tmp_path, engine.steps_taken, {"best": None}, {})
    return tmp_path, engine


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 3] ^= 4
    file.write_bytes(content)


def cut(file):
    os.truncate(file, file.stat().st_size // 2)


@pytest.mark.parametrize("name", ["optimizer.safetensors", "model/model.safetensors", "state.json"])
@pytest.mark.parametrize("damage", [flip, cut, os.unlink])
def test_a_damaged_checkpoint_is_told_and_the_one_before_used(saved, capsys, name, damage):
    run, _ = saved
    assert checkpoint.latest(run)[1]["step"] == 2
    damage(run / "checkpoints" / "step_000002" / name)
    place, numbers = checkpoint.latest(run)
    assert place.name == "step_000001" and numbers["optimizer_steps"] == 1
    assert "step_000002 is damaged" in capsys.readouterr().err
    assert [x.name[:19] for x in run.glob("checkpoints/damaged_*")] == ["damaged_step_000002"]


@pytest.mark.parametrize("content", ["[]", "3", '"x"', "{}", '{"sha256": 3}', '{"sha256": {}}'])
def test_numbers_of_another_kind_are_damage(saved, capsys, content):
    run, _ = saved
    (run / "checkpoints" / "step_000002" / "state.json").write_text(content)
    assert checkpoint.latest(run)[1]["step"] == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "step_000002 is damaged (" in line and "; set aside as damaged_step_000002_" in line


def test_no_bit_of_its_numbers_can_change(saved):
    run, _ = saved
    file = run / "checkpoints" / "step_000002" / "state.json"
    content, place = file.read_bytes(), file.parent
    for i in range(0, len(content), 11):
        file.write_bytes(content[:i] + bytes([content[i] ^ 1]) + content[i + 1 :])
        assert checkpoint.latest(run)[1]["step"] == 1, content[max(0, i - 9) : i + 9]
        (aside,) = run.glob("checkpoints/damaged_*")
        aside.rename(place)
    file.write_bytes(content)
    assert checkpoint.latest(run)[1]["step"] == 2


@pytest.mark.parametrize("size", [0, 1_000, 30_000, 60_000])
def test_what_cannot_be_written_whole_leaves_nothing(saved, size):
    """Up to the size at which the model itself fits, and the parameters beside it do not."""
    run, engine = saved
    engine.steps_taken = 3
    with no_file_beyond(size), pytest.raises(OSError):
        checkpoint.save(engine, run, 3, {}, {"more": {"x": torch.zeros(20_000)}})
    assert sorted(x.name for x in run.glob("checkpoints/*")) == ["step_000001", "step_000002"]
    assert checkpoint.latest(run)[1]["step"] == 2
    checkpoint.save(engine, run, 3, {}, {})
    assert checkpoint.latest(run)[1]["step"] == 3


@pytest.mark.parametrize(
    ("code", "place", "expected"),
    [
        (errno.EACCES, "run/eval/after.jsonl", True),
        (errno.EACCES, "run2/data.jsonl", False),
        (errno.EPERM, None, False),
        (errno.ENOSPC, None, True),
        (errno.ENOENT, "run/config.yaml", False),
    ],
)
def test_what_cannot_be_read_is_no_full_disk(tmp_path, monkeypatch, code, place, expected):
    monkeypatch.chdir(tmp_path)
    for folder in (Path("run"), tmp_path / "run"):
        assert unwritable(OSError(code, os.strerror(code), place), folder) is expected


def test_what_a_killed_life_was_writing_is_removed(saved):
    run, engine = saved
    (run / "checkpoints" / ".step_000007.part" / "model").mkdir(parents=True)
    checkpoint.save(engine, run, 3, {}, {})
    assert not list(run.glob("checkpoints/.*"))


def test_signals(monkeypatch):
    """SIGTERM never hurries; a second Ctrl-C does, unless it is the same one."""
    before = signal.getsignal(signal.SIGTERM)
    with stop.Stop(speaks=False) as asked:
        assert asked.asked is None
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
            signal.raise_signal(number)
        assert asked.asked is not None
        monkeypatch.setattr(stop, "PATIENCE", -1.0)
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is before


def test_what_was_ignored_stays_so(monkeypatch):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stop.Stop(speaks=False) as asked:
            signal.raise_signal(signal.SIGINT)
        assert asked.asked is None
    finally:
        signal.signal(signal.SIGINT, before)


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
