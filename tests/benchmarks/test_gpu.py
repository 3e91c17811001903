"""The script of `.ci/gpu`: on tiny shapes as a whole, and its functions one by one."""

import json
import subprocess
import sys
import time

import pytest
import torch

from eval.policy.policy import load_policy
from eval.rollout.rollout import Decoding, SamplingFailed
from eval.rollout.sample import sample
from tests.benchmarks import gpu, gpu_parts
from tests.commands import ROOT
from trainers.plan.rehearsal import Rehearsal


def test_all_parts_together_take_less_than_ten_minutes():
    assert sum(part.limit for part in gpu.PARTS.values()) <= 570
    assert list(gpu.PARTS)[:2] == [x for x, part in gpu.PARTS.items() if part.required]
    assert all(callable(getattr(gpu_parts, name)) for name in gpu.PARTS)


def writer(tmp_path, then):
    """A command that writes two rows, one at a time, and then does something."""
    rows = [["a", "1 ms", True], ["b|c", "2 ms", True]]
    code = f"import json, sys, time, subprocess\nfile = open({str(tmp_path / 'rows')!r}, 'a')\n"
    code += f"for row in {rows!r}: print(json.dumps(row), file=file, flush=True)\n{then}"
    return [sys.executable, "-c", code], tmp_path / "rows"


ROWS = [("a", "1 ms", True), ("b|c", "2 ms", True)]


@pytest.mark.parametrize(
    ("then", "trouble"),
    [
        ("", None),
        ("raise SystemExit(3)", "ended with 3: no message"),
        ("print('x'); raise ValueError('no kernel')", "ended with 1: ValueError: no kernel"),
    ],
)
def test_a_part_keeps_what_it_has_measured(tmp_path, then, trouble):
    assert gpu.collect(*writer(tmp_path, then), 60) == (ROWS, trouble)


def test_a_part_that_overruns_is_cut_off_with_all_it_has_started(tmp_path):
    """A child that would write later does not."""
    child = f"import time; time.sleep(4); open({str(tmp_path / 'late')!r}, 'w')"
    then = f"subprocess.Popen([sys.executable, '-c', {child!r}])\ntime.sleep(60)"
    start = time.monotonic()
    assert gpu.collect(*writer(tmp_path, then), 2.5) == (ROWS, "cut off after 2 s")
    assert time.monotonic() - start < 20
    time.sleep(5)
    assert not (tmp_path / "late").exists()


def test_a_part_is_judged():
    required, free = gpu.Part(1, required=True), gpu.Part(1)
    wrong = [*ROWS, ("d", "1e-1", False)]
    assert gpu.judged(required, ROWS, None) == (ROWS, True)
    assert gpu.judged(required, wrong, None) == ([*ROWS, ("d", "**1e-1**", False)], False)
    for part in (required, free):
        rows, good = gpu.judged(part, ROWS, "cut off after 2 s")
        assert rows[-1][1] == "**failed: cut off after 2 s**" and good == (part is free)
        rows, good = gpu.judged(part, [], None)
        assert rows == [("", "**failed: measured nothing**", False)] and good == (part is free)


def test_the_table():
    lines = gpu.markdown([("first", ROWS), ("second", ROWS[:1])]).splitlines()
    assert lines[2:] == ["| first | a | 1 ms |", "|  | b/c | 2 ms |", "| second | a | 1 ms |"]
    assert all(line.count("|") == 4 for line in lines)
    for tiny, begin in ((False, "Measured by"), (True, "Tiny shapes, a trial")):
        line = gpu.heading(tiny)
        assert line.startswith(begin) and f"torch {torch.__version__}" in line


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA A100-SXM4-80GB", "a100-80"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA GeForce RTX 4090", "4090"),
        ("NVIDIA L40S", None),
    ],
)
def test_a_gpu_is_known_by_its_name(name, key):
    assert gpu_parts.data_sheet(name) == (key and gpu_parts.DEVICES[key])


def test_the_tokens_of_a_random_model(tmp_path):
    """Letters are tokens, all ids have a text, and a saved model is the same."""
    made = gpu_parts.policy("tiny")
    (problem,) = gpu.Letters(8).training(0, 1, 1)
    assert [len(x) for x in made.encode([problem.prompt, *gpu_parts.prompts(2, 20)])] == [8, 20, 20]
    texts = made.tokenizer.batch_decode([[i] for i in range(512)])
    assert len(set(texts)) > 380 and "w511" in texts
    made.model.save_pretrained(tmp_path)
    made.tokenizer.save_pretrained(tmp_path)
    again = load_policy(str(tmp_path), "bfloat16")
    how = Decoding(6)
    drawn = [sample(x, ["abc"], 4, how, 1).completions for x in (made, again)]
    assert [x[:1] for x in drawn[0]] == [x[:1] for x in drawn[1]]
    assert all(len(x) == 6 for x in drawn[0])


@pytest.mark.parametrize(("name", "count"), [("0.5B", 494_032_768), ("7B", 7_615_616_512)])
def test_the_shapes_are_those_of_real_models(name, count):
    rehearsal = Rehearsal(gpu_parts._config(False), gpu_parts.shape(name))
    assert rehearsal.sizes().parameters == count


def test_the_problems_and_their_verdicts():
    task = gpu.Letters(length=30)
    problems = task.training(0, 1, 200)
    assert problems == task.training(0, 1, 200) != task.training(0, 2, 200)
    assert {len(x.prompt) for x in problems} == {30}
    assert len({x.id for x in task.evaluation(50)}) == 50
    right = sum(gpu.every_other(x.prompt, "") for x in problems)
    assert 70 < right < 130


def test_correctness_is_judged_by_its_tolerance(tmp_path, monkeypatch):
    rows = list(gpu_parts.correctness(gpu_parts.TINY, tmp_path))
    assert len(rows) == 4 and all(good for *_, good in rows)
    assert "30 of 30 completions equal" in rows[0][1]
    monkeypatch.setattr(gpu_parts, "TOLERANCES", {torch.float32: 1e-9, torch.bfloat16: 1e-4})
    judged = [good for *_, good in gpu_parts.correctness(gpu_parts.TINY, tmp_path)]
    assert judged == [False, True, False, True]  # those beside float64, those beside no graph


def test_an_error_is_in_units_of_the_largest_number():
    x = torch.tensor([1.0, -4.0])
    assert gpu_parts.error(x, x) == 0 and gpu_parts.error(x + 1, x) == 0.25
    assert gpu_parts.error(x / 0 * 0, x) == float("inf")


def test_a_smoke_run_is_judged_by_its_gradients(tmp_path):
    def judged(code, norms, stderr=""):
        lines = [json.dumps({"train/loss": 0.0, "train/grad_norm": x}) for x in norms]
        (tmp_path / "metrics.jsonl").write_text("\n".join([json.dumps({"eval": 1}), *lines]))
        return gpu_parts.failure(subprocess.CompletedProcess([], code, "", stderr), tmp_path)

    assert judged(0, [1.0, 0.0, 2.0]) is None
    for norms in ([0.0, 0.0, 0.0], [1.0, 2.0], [1.0, float("nan"), 2.0]):
        assert judged(0, norms).startswith("failed: gradients of norm")
    assert (
        judged(1, [1.0, 0.0, 2.0], "many\nRuntimeError: no\n") == "failed with 1: RuntimeError: no"
    )


def test_a_case_that_outgrows_the_device_costs_no_other():
    def too_large():
        raise torch.OutOfMemoryError("CUDA out of memory")

    def too_many():
        raise SamplingFailed("train.rollout_tokens = 9: too much for the device's memory; ..")

    def broken():
        raise SamplingFailed("the model's logits are not finite")

    for outgrown in (too_large, too_many):
        assert gpu_parts.within(outgrown) == ("outgrows the device's memory", True)
    with pytest.raises(SamplingFailed, match="not finite"):
        gpu_parts.within(broken)
    assert gpu_parts.within(lambda: "3 ms") == ("3 ms", True)


@pytest.mark.slow
def test_the_whole_script_on_tiny_shapes():
    command = [str(ROOT / ".ci" / "gpu"), "--tiny"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    heading, _, *lines = done.stdout.splitlines()
    assert heading.startswith("Tiny shapes, a trial of the script by `.ci/gpu` on 20")
    assert not [x for x in lines if "failed" in x]
    first = [x.split("|")[1].strip() for x in lines[2:]]
    assert [x for x in first if x] == list(gpu.PARTS)
    for name in [*gpu_parts.SMOKE, "tiny, 16 rows", "with checkpointing", "last_layer", "ghost"]:
        assert any(name in x for x in lines), name
