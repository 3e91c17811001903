"""The gap of pass@1 to its floor: unbiased, and without the noise of the prompts drawn."""

import itertools

import pytest
import torch

from surgery.gap import change_to_base, gap_to_base
from surgery.geometry import Geometry

SHARE = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
NOW = torch.tensor([0.9, 0.4, 0.1], dtype=torch.float64)
BEFORE = torch.tensor([0.8, 0.5, 0.1], dtype=torch.float64)
FIRST_TWO = (0.5 * 0.8 + 0.3 * 0.5) / 0.8  # the base's rate over a stratum of two prompts
STRATA = torch.tensor([FIRST_TWO, FIRST_TWO, 0.1], dtype=torch.float64)


@pytest.mark.parametrize("base", [BEFORE, STRATA], ids=["prompt", "stratum"])
def test_the_change_is_unbiased_whatever_the_base_is_known_of(base):
    """Over all batches of two prompts, drawn by any q with importance share/q."""
    q = torch.tensor([0.2, 0.2, 0.6], dtype=torch.float64)
    expected = 0.0
    for i in map(list, itertools.product(range(3), repeat=2)):
        expected += float(q[i].prod()) * change_to_base(NOW[i], base[i], (SHARE / q)[i])
    assert expected == pytest.approx(float(SHARE @ (NOW - BEFORE)), abs=1e-15)


def test_prompts_that_did_not_change_add_no_noise():
    """Whatever prompts are drawn, a base held against itself did not change."""
    for i in map(list, itertools.product(range(3), repeat=2)):
        assert change_to_base(BEFORE[i], BEFORE[i]) == 0


def test_without_a_known_base_the_first_batch_stands_for_it():
    rate = torch.tensor([0.25, 0.75], dtype=torch.float64)
    state: dict[str, float] = {}
    assert gap_to_base(Geometry(rate), state, 0.0, rate_ema=0.0) == 0
    assert gap_to_base(Geometry(rate - 0.25), state, 0.0, rate_ema=0.0) == pytest.approx(0.25)


def test_the_gap_is_that_of_the_held_prompts_if_these_are_given():
    """The batch's own rate then plays no part."""
    state = {"base_pass@1": 0.9}
    geometry = Geometry(torch.tensor([0.1, 0.1], dtype=torch.float64), change=0.02)
    assert gap_to_base(geometry, state, -0.05, rate_ema=0.0) == pytest.approx(0.05 - 0.02)
    assert gap_to_base(geometry, {}, 0.0, rate_ema=0.5, lead=1.0) == pytest.approx(-0.02)
