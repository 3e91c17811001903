"""Whole runs on the fake device, one rank: DeepSpeed's own way on CUDA, under every ZeRO stage."""

import pytest

from tests.commands import launched
from tests.launched.device import CASES


@pytest.fixture(scope="module")
def results(base_path, tmp_path_factory):
    return launched("device.py", tmp_path_factory.mktemp("device") / "results.json", ranks=1)


@pytest.mark.parametrize("case", CASES)
def test_a_run_and_its_resumption_mix_no_devices(results, case):
    """A mixed operation would have ended the program. The policy is on the device, and finite."""
    found = results[case]
    assert found["places"] == ["cuda:0"] and found["operations"] > 5000
    assert found["resumed from"] == 1 and found["resumed"] and found["finite"]


def test_a_planted_defect_is_found(results):
    assert "aten.embedding.default" in results["planted"]
    assert "c10d.allreduce_.default of [1] on cpu" in results["a sum of the host's"]
