import math
from itertools import product

import pytest
import torch

from surgery.estimators import loo, rloo
from surgery.gram import (
    Geometry,
    Products,
    agreements,
    by_others,
    probes_of,
    products,
    prompt_gradients,
    psd,
    smoothed,
)
from surgery.objectives import prompt_weight
from surgery.rules import RULES, apply


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


def test_probes_are_products_with_the_other_prompts():
    advantages, features = torch.randn(5, 3).double(), torch.randn(15, 4).double()
    g = prompt_gradients(advantages, features)
    some = probes_of(g, features.view(5, 3, 4)[[1, 4]].flatten(0, 1), [1, 4])
    for row, i in enumerate((1, 4)):
        j_1 = torch.stack([g[m] for m in range(5) if m != i]).mean(0)
        assert torch.allclose(some[row], features.view(5, 3, 4)[i] @ j_1)
    whole = probes_of(g, features)
    assert torch.allclose((advantages * whole).sum(1), agreements(g))


def test_by_others_is_the_same_without_the_completion():
    generator = torch.Generator().manual_seed(0)
    correct = (torch.rand(6, 5, generator=generator) < 0.5).double()
    correct[0], correct[1] = 0, 1
    probes = torch.randn(6, 5, generator=generator).double()
    found = by_others(correct, 3, probes)
    for j in range(5):
        rest = [m for m in range(5) if m != j]
        agreement = (rloo(correct[:, rest]) * probes[:, rest]).sum(1)
        assert torch.allclose(found.agreement[:, j], agreement)
        weights = prompt_weight(4, correct[:, rest].sum(1), 3)
        assert torch.allclose(found.weights[:, j], weights)
    assert (found.agreement[:2] == 0).all()


@pytest.mark.parametrize("others", [True, False])
def test_decided_by_others_a_clip_only_reweights(others):
    """The mean update of a prompt over all outcomes is a multiple of grad p, unless a completion
    helps to decide about its own prompt.
    """
    n, k, j_1 = 4, 2, torch.tensor([0.1, 1.0, -1.0]).double()
    p = torch.tensor([0.3, 0.3, 0.4]).double()  # of three answers, the first of which is right
    scores = torch.eye(3).double() - p  # grad log pi(y) with respect to the logits
    mean = torch.zeros(3).double()
    for answers in product(range(3), repeat=n):
        y = torch.tensor([answers])
        correct, u = (y == 0).double(), scores[y[0]]
        probes, a_1 = (u @ j_1)[None], rloo(correct)
        weights, agreement = prompt_weight(n, correct.sum(1), k), (a_1 * probes).sum(1)
        apart = by_others(correct, k, probes) if others else None
        geometry = Geometry(correct.mean(1), agreement=agreement, others=apart)
        decision = RULES["agreement_clip"].bind({"tau": 0.7})(weights, geometry, {})
        update = apply(decision, loo(correct, k), a_1)[0] @ u
        mean += p[y].prod() * update
    ascent = p[0] * scores[0]  # grad p
    cosine = float(mean @ ascent / mean.norm() / ascent.norm())
    assert (cosine == pytest.approx(1.0, abs=1e-12)) == others
