"""The trainer of TRL with surgery, beside the trainer of this project.

They need a Python with this project and its extra [trl] in PASSK_SURGERY_TRL_PYTHON.
"""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.commands import ROOT, free_port

PYTHON = os.environ.get("PASSK_SURGERY_TRL_PYTHON", "")
MISSING = "no PASSK_SURGERY_TRL_PYTHON: CONTRIBUTING.md says which"
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not PYTHON, reason=MISSING)]
RULES = {"none", "mix", "pcgrad", "agreement_clip"}


def program(*arguments: str, processes: int = 1) -> None:
    environ = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    start = ["-m", "torch.distributed.run", "--master_port", free_port()]
    start += ["--nproc_per_node", str(processes)]
    done = subprocess.run(
        [PYTHON, *(start if processes > 1 else []), "tests/launched/under_trl.py", *arguments],
        cwd=ROOT,
        env=environ,
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def batch(tmp_path_factory, base_path) -> Path:
    """A batch of this project's trainer, with its gradient for each rule."""
    path = tmp_path_factory.mktemp("trl") / "batch.pt"
    program("here", str(path))
    gradients = torch.load(path)["gradients"]
    assert gradients.keys() == RULES
    flat = [torch.cat([y.flatten() for y in x.values()]) for x in gradients.values()]
    for i, x in enumerate(flat):  # negative control: no two rules do the same here
        assert all((x - y).norm() > 0.01 * x.norm() for y in flat[:i])
    return path


@pytest.mark.parametrize("processes", [1, 2])
def test_the_gradient_of_a_batch_is_that_of_our_trainer(batch, tmp_path, processes):
    program("gradients", str(batch), str(tmp_path / "out"), processes=processes)
    found = json.loads((tmp_path / "out").read_text())
    assert found["rules"].keys() == RULES and 0.2 < found["verdicts"] < 0.8
    distances = found["rules"] | found["losses"]
    assert len(distances) == 9 and max(distances.values()) < 1e-5, distances


@pytest.fixture(scope="module")
def runs(tmp_path_factory, base_path) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("resume")
    program("resume", str(folder), str(folder / "out"))
    return json.loads((folder / "out").read_text())


def test_a_resumed_run_continues_the_state(runs):
    half, whole = runs["saved"]
    assert runs["again"] == whole != half
    assert whole["probe"]["measured"] == 4 and "average_change" in whole["rule_state"]
    assert runs["no state"].startswith("resume_from_checkpoint = ")
    assert "\n" not in runs["no state"] and "no surgery.json" in runs["no state"]


def test_scalars_are_in_the_log_of_trl(runs):
    logged = runs["logged"][0]
    assert {"pass@1", "pass@2", "pass@4", "surgery/lambda", "surgery/dot"} <= logged.keys()
    assert logged["surgery/skipped"] == 0


def test_refusals_are_lines(runs):
    assert runs["reward"].startswith("reward = 0.5: pass@k needs verdicts; ")
    assert runs["defaults"].startswith("GRPOConfig.scale_rewards = 'group': ")
    assert "\n" not in runs["reward"] + runs["defaults"]
    (warning,) = runs["warnings"]
    assert "num_iterations" in warning and "top_p" in warning and "beta" not in warning
