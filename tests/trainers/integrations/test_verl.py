"""The registry of verl with the estimators of this project.

They need a Python with verl and this project's dependencies in PASSK_SURGERY_VERL_PYTHON.
"""

import json
import os
import subprocess
from typing import Any

import pytest

from surgery.estimators import ESTIMATORS
from tests.commands import ROOT

PYTHON = os.environ.get("PASSK_SURGERY_VERL_PYTHON", "")
MISSING = "no PASSK_SURGERY_VERL_PYTHON: CONTRIBUTING.md says which"
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not PYTHON, reason=MISSING)]


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("verl") / "out"
    done = subprocess.run(
        [PYTHON, "tests/launched/under_verl.py", str(out)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(out.read_text())


def test_every_estimator_is_in_the_registry(found):
    assert set(found["names"]) == set(ESTIMATORS)


def test_rloo_is_that_of_verl(found):
    assert found["from rloo of verl"] < 1e-6


def test_the_gradient_of_ragged_groups_through_the_loss_of_verl(found):
    assert found["gradient"] < 1e-7 < 1e-2 < found["largest"]


def test_refusals_are_lines(found):
    assert found["measures"].startswith("surgery.rule = mgda: measures gradients")
    assert found["k"].startswith("objective.k = 5: loo serves k <= 4")
    assert found["kl"].startswith("reward = 0.9: pass@k needs verdicts")
