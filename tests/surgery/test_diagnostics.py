"""What a step says of the signal, by hand."""

import math

import pytest
import torch

from surgery.diagnostics import of_decision, of_products
from surgery.geometry import Products


def test_lengths_are_those_of_the_smoothed_products():
    now, smooth = Products(-1.0, -0.5, 2.0), Products(-1.0, 4.0, 9.0)
    found = of_products(now, None, smooth)
    assert (found["length_1"], found["length_k"], found["length_ratio"]) == (2.0, 3.0, 1.5)
    nothing = of_products(now, None, Products(-1.0, 0.0, 9.0))  # |J_1|^2 measured as 0
    assert nothing["length_1"] == 0 and "length_ratio" not in nothing
    unmeasured = of_products(now, None, Products(-1.0, 4.0, math.nan))
    assert unmeasured["length_1"] == 2 and "length_k" not in unmeasured


def test_conflict_of_the_batch_and_of_the_average():
    found = of_products(Products(-1.0, 4.0, 9.0), None, Products(0.5, 4.0, 9.0))
    assert (found["conflict"], found["conflict_smoothed"]) == (1, 0)
    found = of_products(Products(0.0, 4.0, 9.0), None, Products(-0.5, 4.0, 9.0))
    assert (found["conflict"], found["conflict_smoothed"]) == (0, 1)


def test_the_mean_weight_is_that_before_the_rule():
    weights = torch.tensor([8.0, 0.0, 1.0])
    found = of_decision(weights, (torch.ones(3), 100 * torch.ones(3)), torch.ones(3).double())
    assert found["mean_weight"] == 3 and found["lambda"] == pytest.approx(100)
