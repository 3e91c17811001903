"""Checkpoints that are damaged, cut short, or cannot be written."""

import errno
import os
from pathlib import Path

import pytest
import torch

from eval.errors import unwritable
from tests.commands import no_file_beyond
from tests.fakes import Still
from trainers.train import checkpoint


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
