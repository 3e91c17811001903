"""Averages over repeats in training: the same samples, on any number of ranks."""

import json

import pytest
import torch

from eval.sampling import Rollout
from tests.conftest import ROOT, run

TRAIN, CONFIG = str(ROOT / "launch" / "train.py"), str(ROOT / "configs" / "pcgrad.yaml")
SMALL = [
    *("train.steps=2", "train.prompts=12", "train.samples=8", "train.warmup_steps=0"),
    *("eval.problems=10", "eval.samples=8", "eval.every=0", "run.threads=1"),
]


def test_completions_are_numbered_by_their_tokens_within_the_prompt():
    """An end of text makes a difference, another prompt's completion makes none."""
    completions = [[5, 1], [5], [5, 1], [7, 1], [7, 1], [5, 1], [7, 1], [7]]
    nothing = torch.zeros(8)
    rollout = Rollout([[3], [4]], completions, [""] * 8, nothing.bool(), nothing, nothing, None, 4)
    assert rollout.which.tolist() == [0, 1, 0, 2, 0, 1, 0, 2]


def test_a_run_with_averages(tmp_path, base_path):
    steps = {}
    for name, ranks in (("false", 0), ("true", 0), ("true", 2)):
        folder = f"{name}{ranks}"
        options = [f"objective.average_repeats={name}", f"run.dir={folder}"]
        done = run(TRAIN, "--config", CONFIG, *SMALL, *options, cwd=tmp_path, ranks=ranks)
        assert done.returncode == 0, done.stderr
        lines = (tmp_path / folder / "metrics.jsonl").read_text().splitlines()
        steps[folder] = list(map(json.loads, lines))[1:]
    plain, averaged, shared = (steps[x][0] for x in ("false0", "true0", "true2"))
    assert plain["train/sequence_entropy"] == averaged["train/sequence_entropy"]  # same samples
    for key in ("train/pass@1", "train/grad_norm", "surgery/dot", "surgery/mean_weight"):
        assert plain[key] != averaged[key], key
        assert averaged[key] == pytest.approx(shared[key], rel=1e-4), key
    assert averaged["train/pass@1"] == pytest.approx(plain["train/pass@1"], abs=0.1)
    assert all(x["train/skipped"] == 0 for run in steps.values() for x in run)
