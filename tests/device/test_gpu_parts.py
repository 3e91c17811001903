"""The parts of `.ci/gpu` on the fake device, where nothing mixes and a graph changes no draw."""

import copy

import pytest
import torch

from tests.benchmarks import gpu_parts
from tests.fake_device import FakeDevice


@pytest.fixture
def on_device(monkeypatch):
    """A device that is an H100; models are made on the host, and then moved."""
    made = {dtype: gpu_parts.policy("tiny", dtype) for dtype in (torch.bfloat16, torch.float64)}

    def policy(name, dtype=torch.bfloat16):
        moved = copy.deepcopy(made[dtype].model).to("cuda")
        return gpu_parts.Endless(moved, made[dtype].tokenizer)

    numbers = gpu_parts.planned_model(made[torch.bfloat16].model.config, False)
    monkeypatch.setattr(gpu_parts, "planned_model", lambda config, checkpointing: numbers)
    monkeypatch.setattr(gpu_parts, "policy", policy)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 3 * 2**30)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    with FakeDevice() as device:
        yield device
        assert device.operations > 1000


def test_correctness(on_device, tmp_path):
    rows = list(gpu_parts.correctness(gpu_parts.TINY, tmp_path))
    assert len(rows) == 4 and all(good for *_, good in rows)
    for _, result, _ in (rows[0], rows[1], rows[3]):
        assert result.startswith("30 of 30 completions equal")


def test_sampling(on_device, tmp_path):
    rows = list(gpu_parts.sampling(gpu_parts.TINY, tmp_path))
    assert len(rows) == 2 * len(gpu_parts.TINY.rows)
    for case, result, _ in rows:
        assert "tokens/s; at most 3.0 GiB; by --plan" in result, case


def test_update(on_device, tmp_path):
    rows = list(gpu_parts.update(gpu_parts.TINY, tmp_path))
    assert [case for case, *_ in rows] == [f"tiny, {x} checkpointing" for x in ("without", "with")]
    for _, result, _ in rows:
        assert "MFU 0 %, 0 % with what is made again" in result
