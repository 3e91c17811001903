import math

import pytest
import torch

from surgery.gram import Products, agreements, products, prompt_gradients, psd, smoothed


def random_gradients(seed=0, prompts=6, width=5):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, prompts, width, generator=generator, dtype=torch.float64)


def test_products_against_double_loops():
    g_k, g_1 = random_gradients()
    n = len(g_1)
    pairs = [(i, j) for i in range(n) for j in range(n)]
    for statistic, kept in (("naive", pairs), ("loo", [(i, j) for i, j in pairs if i != j])):
        x = products(g_k, g_1, statistic)
        for value, a, b in ((x.dot, g_k, g_1), (x.norm_1, g_1, g_1), (x.norm_k, g_k, g_k)):
            assert value == pytest.approx(float(sum(a[i] @ b[j] for i, j in kept)) / len(kept))
        a = agreements(g_1, statistic)
        for i in range(n):
            others = [float(g_1[i] @ g_1[j]) for i2, j in kept if i2 == i]
            assert float(a[i]) == pytest.approx(sum(others) / len(others))
    assert float(a.mean()) == pytest.approx(products(g_k, g_1).norm_1)


def test_prompt_gradients_are_sums_over_completions():
    advantages, features = torch.randn(3, 4), torch.randn(12, 5)
    g = prompt_gradients(advantages, features)
    for i in range(3):
        by_hand = sum(advantages[i, j].double() * features[4 * i + j].double() for j in range(4))
        assert torch.allclose(g[i], by_hand)


def test_the_self_term_hides_conflicts():
    """DESIGN of the measurement: with noise, leave-one-out sees a true cosine of -0.5, the naive
    product never.
    """
    generator = torch.Generator().manual_seed(0)
    width, prompts, trials = 20_000, 32, 40
    seen = {"naive": 0, "loo": 0}
    for _ in range(trials):
        hard = torch.rand(prompts, generator=generator) < 0.25
        g = torch.randn(prompts, width, generator=generator) * (3.3 / math.sqrt(width))
        g[:, 0] += torch.where(hard, -0.6, 1.0)
        g[:, 1] += torch.where(hard, 0.5, 0.0)
        weights = torch.where(hard, 2.0, 0.1)
        for statistic in seen:
            seen[statistic] += products(weights[:, None] * g, g, statistic).dot < 0
    assert seen["naive"] == 0
    assert seen["loo"] >= 0.8 * trials


def test_psd_projection():
    x = Products(dot=1.0, norm_1=2.0, norm_k=3.0)
    assert psd(x) == x
    y = psd(Products(dot=-1.0, norm_1=0.2, norm_k=2.0))
    assert y.norm_1 > 0 and y.norm_1 * y.norm_k == pytest.approx(y.dot**2)
    z = psd(Products(dot=-1.0, norm_1=-0.2, norm_k=-2.0))  # degenerate: the sign stays
    assert (z.dot, z.norm_1, z.norm_k) == (-1.0, 0.0, 0.0) and z.cosine == 0.0


def test_smoothing():
    one, three = Products(1.0, 1.0, 1.0), Products(3.0, 3.0, 3.0)
    assert smoothed(one, None, 0.5) == one
    # weights 1/2 and 1, then 1/4, 1/2 and 1
    assert smoothed(three, one, 0.5).dot == pytest.approx(7 / 3)
    assert smoothed(one, Products(7 / 3, 1.0, 1.0), 0.5, 2).dot == pytest.approx(11 / 7)
    assert smoothed(three, one, 0.0) == three
