"""The weighted gradient and the state, on 1 and 2 ranks and every ZeRO stage, against plain
autograd.
"""

import pytest

from tests.commands import launched


@pytest.fixture(scope="module", params=[1, 2], ids=["1 rank", "2 ranks"])
def results(request, tmp_path_factory):
    out = tmp_path_factory.mktemp("ranks") / "results.json"
    return launched("ranks.py", out, ranks=request.param)


@pytest.mark.parametrize("stage", "0123")
def test_stage(results, stage):
    found = results[stage]
    assert found["gradient_error"] < 1e-5
    assert found["norm_error"] < 1e-5  # the norm before clipping
    assert found["no_metric_before_the_first_step"] and found["metric_error"] < 1e-5
    assert found["metric_restored"]
    # NaN or infinite on one rank only, and refused by all
    assert set(found["spoiled_steps"]) == {None} and found["unchanged_by_them"]
    assert found["policy_is_current"] and found["policy_is_restored"]
    assert found["restored"] and found["continued"]
    assert found["total"] == pytest.approx(results["0"]["total"], rel=1e-6)


@pytest.mark.parametrize("stage", "0123")
def test_a_busy_rank_is_waited_for(results, stage):
    """A day, in DeepSpeed's own groups too, which `initialize` makes."""
    assert len(results[stage]["limits"]) > 2 and set(results[stage]["limits"]) == {86400.0}


def test_everybodys_values_are_put_back_in_place(results):
    world = len(results["in place"])
    for found in results["in place"]:
        assert found["rows"] == [[i, -i] for i in range(5)] and found["dtype"] == "torch.int64"
        assert found["lists"] == [["rank", i % world, "prompt", i] for i in range(5)]
        assert found["nobody's"] == [0, 3]
