import math
from itertools import product

import pytest
import torch

from surgery.objectives import miss, pass_at_k, pass_at_k_weight, prompt_weight, rho


@pytest.mark.parametrize("n", range(1, 9))
def test_estimates_match_combinatorics_and_are_unbiased(n):
    outcomes = torch.tensor(list(product([0, 1], repeat=n)))
    c = outcomes.sum(1)
    for k in range(n + 1):
        by_hand = torch.tensor(
            [math.comb(n - int(x), k) / math.comb(n, k) for x in c], dtype=torch.float64
        )
        assert torch.allclose(miss(n, c, k), by_hand, rtol=1e-13, atol=0)
        for p in (0.0, 0.05, 0.3, 0.8, 1.0):
            chance = p ** c.double() * (1 - p) ** (n - c).double()
            assert float(chance @ rho(n, c, k)) == pytest.approx(1 - (1 - p) ** k, abs=1e-12)
            if k:
                assert float(chance @ prompt_weight(n, c, k)) == pytest.approx(
                    k * (1 - p) ** (k - 1), abs=1e-12
                )


def test_by_hand():
    assert float(rho(4, torch.tensor(1), 2)) == pytest.approx(0.5)  # 1 - C(3,2)/C(4,2)
    assert float(rho(4, torch.tensor(3), 2)) == 1.0
    assert float(rho(4, torch.tensor(0), 4)) == 0.0
    assert float(rho(1000, torch.tensor(1), 1000)) == 1.0


@pytest.mark.parametrize("k", [5, -1])
def test_k_beyond_n_is_an_error(k):
    with pytest.raises(ValueError, match="k ="):
        rho(4, torch.tensor([1]), k)


def test_impossible_counts_are_an_error():
    with pytest.raises(ValueError, match=r"0\.\.4"):
        rho(4, torch.tensor([5]), 2)


def test_weight_is_the_derivative():
    p = torch.tensor([0.0, 1e-12, 0.01, 0.1, 0.5], dtype=torch.float64, requires_grad=True)
    for k in (1, 2, 8, 30):
        (slope,) = torch.autograd.grad(pass_at_k(p, k).sum(), p)
        assert torch.allclose(slope, pass_at_k_weight(p.detach(), k), rtol=1e-6, atol=0)


def test_pass_at_k_at_the_ends():
    assert pass_at_k(torch.tensor([0.0, 1.0]), 8).tolist() == [0.0, 1.0]
