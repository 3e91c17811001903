"""ZeRO, bf16, checkpointing, LoRA, chunks, offload and several updates, together on two ranks,
against one process that saves nothing.
"""

import pytest

from tests.commands import launched
from tests.fakes import TEXTS
from tests.launched import sums
from tests.launched.scale import BF16, WAYS
from tests.models import save_model


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("models")
    return [save_model(place / kind, kind, TEXTS) for kind in ("llama", "qwen2")]


@pytest.fixture(scope="module")
def results(folders, tmp_path_factory):
    out = tmp_path_factory.mktemp("ranks") / "results.json"
    return launched("scale.py", out, *folders, ranks=2)


@pytest.fixture(
    scope="module", params=[1, pytest.param(2, marks=pytest.mark.slow)], ids=["1 rank", "2 ranks"]
)
def summed(request, tmp_path_factory):
    out = tmp_path_factory.mktemp("sums") / "results.json"
    return request.param, launched("sums.py", out, ranks=request.param)


@pytest.mark.parametrize("way", WAYS)
def test_in_float32_nothing_changes(results, way):
    found = results[way]
    assert found.pop("resumes")
    assert found and all(x < 1e-5 for x in found.values()), found


@pytest.mark.parametrize("way", BF16)
def test_in_bfloat16_nothing_is_added_to_its_own_rounding(results, way):
    """One rounding is 2^-9 at most. Beside a plain bfloat16 run the gradient is rounded again for
    each micro-batch and rank, a few times 0.2 %; all of a forward's and backward's roundings
    together, which the plain run has too, are several times that.
    """
    found = results[way]
    assert found["resumes"]
    assert found["from plain"] < 4 * 2**-9
    assert found["error"] < 1.25 * found["plain error"], found


@pytest.mark.parametrize("way", sums.WAYS)
def test_in_bfloat16_gradients_add_up_in_float32(summed, way):
    """A bfloat16 sum stops where its parts are small. Between ranks that reduce each micro-batch in
    bfloat16, ZeRO 2 and 3, its rounding is left, 2^-9 at most.
    """
    ranks, results = summed
    found, least = results[way], 2**-9 if ranks > 1 and "zero 1" not in way else 1e-6
    assert results["rounded"] > 2 * 2**-9
    assert found["error"] <= least and found["error later"] <= least
    assert set(found["spoiled"]) == {None} and found["kept"]


def test_in_bfloat16_a_small_step_is_seen(summed):
    _, results = summed
    whole = results["realised in float32"]
    assert whole != 0 and results["realised"] == pytest.approx([whole] * 3, rel=0.05)


def test_a_rollout_gathers_once(results):
    """Under ZeRO-3 the weights are gathered on entering, and no token asks for them again."""
    assert results["gathers"]["entering"] > 0 == results["gathers"]["sampling"]
