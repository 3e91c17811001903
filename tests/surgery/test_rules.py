import pytest
import torch

from surgery.gram import Geometry, Products
from surgery.rules import RULES, apply


def geometry(dot, norm_1=1.0, degenerate=False):
    return Geometry(Products(dot, norm_1, 1.0), torch.zeros(3), degenerate)


def coefficient(dot, norm_1=1.0, degenerate=False, **settings):
    rule = RULES["pcgrad"].bind(settings)
    alpha, beta = rule(torch.ones(3).double(), geometry(dot, norm_1, degenerate), {})
    assert alpha.tolist() == [1, 1, 1] and len(set(beta.tolist())) == 1
    return float(beta[0])


def test_pcgrad_is_the_one_sided_projection():
    assert coefficient(dot=0.5) == 0
    assert coefficient(dot=-1.0, norm_1=2.0) == 0.5
    assert coefficient(dot=-30.0, cap=10.0) == 10
    assert coefficient(dot=0.1, margin=0.25) == pytest.approx(0.15)
    assert coefficient(dot=-1.0, norm_1=0.0, degenerate=True, cap=7.0) == 7
    assert coefficient(dot=1.0, norm_1=0.0, degenerate=True) == 0


def test_settings_go_to_the_rule_that_names_them():
    alpha, beta = RULES["mix"].bind({"mix": 0.3, "cap": 5.0})(torch.ones(2), None, {})
    assert alpha.tolist() == [1, 1] and torch.allclose(beta, torch.tensor([0.3, 0.3]))


def test_apply():
    a = apply(
        (torch.tensor([1.0, 2.0]), torch.tensor([0.0, 3.0])),
        torch.ones(2, 2),
        torch.full((2, 2), 10.0),
    )
    assert a.tolist() == [[1, 1], [32, 32]]
