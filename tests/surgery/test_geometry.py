import math
from itertools import product

import pytest
import torch

from surgery.estimators import ESTIMATORS, rloo
from surgery.geometry import (
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


def mean_update(rule, estimator, n, k, j_1, others=True):
    """The mean of a rule's update of a prompt over every outcome of n answers out of three, the
    first of which is right; and grad p. Each outcome is a prompt of one batch.
    """
    p = torch.tensor([0.3, 0.3, 0.4], dtype=torch.float64)
    scores = torch.eye(3).double() - p  # grad log pi(y) with respect to the logits
    y = torch.tensor(list(product(range(3), repeat=n)))
    correct, u = (y == 0).double(), scores[y]
    probes, a_1 = u @ j_1, rloo(correct)
    weights, agreement = prompt_weight(n, correct.sum(1), k), (a_1 * probes).sum(1)
    apart = by_others(correct, k, probes) if others else None
    geometry = Geometry(correct.mean(1), Products(0.0, 0.1, 0.1), agreement, others=apart)
    decision = RULES[rule].bind({"tau": 0.7, "softness": 1e-3})(weights, geometry, {})
    advantages = apply(decision, ESTIMATORS[estimator](correct, k), a_1)
    return torch.einsum("o,oj,ojd->d", p[y].prod(1), advantages, u), p[0] * scores[0]


def off_the_line(mean, ascent):
    """The length of what is no multiple of `ascent`, as a share."""
    rest = mean - (mean @ ascent) / (ascent @ ascent) * ascent
    return float(rest.norm() / mean.norm())


@pytest.mark.parametrize("rule", [name for name in RULES if name.startswith("agreement")])
# the baseline of loo_shrunk reads the other prompts, which here are the prompt's other outcomes
@pytest.mark.parametrize("estimator", sorted(ESTIMATORS.keys() - {"loo_shrunk"}))
def test_decided_by_others_a_rule_only_reweights(estimator, rule):
    """The mean update of a prompt over all outcomes is a multiple of grad p, whatever J_1 is, and
    whether or not the others are all right, or all wrong.
    """
    generator = torch.Generator().manual_seed(0)
    for n in (3, 4):
        for j_1 in torch.randn(5, 3, generator=generator, dtype=torch.float64):
            assert off_the_line(*mean_update(rule, estimator, n, 2, j_1)) < 1e-12


def test_decided_by_all_a_clip_bends_the_gradient():
    j_1 = torch.tensor([0.1, 1.0, -1.0]).double()
    assert off_the_line(*mean_update("agreement_clip", "loo", 4, 2, j_1, others=False)) > 1e-2


def test_others_that_are_all_right_or_all_wrong_agree_by_exactly_nothing():
    """Whatever the own completion says, and however long its probe."""
    generator = torch.Generator().manual_seed(0)
    for n in (3, 4, 7, 16):
        probes = torch.randn(200, n, generator=generator).double()
        probes[:, 0] *= 1e6
        for own, rest in product((0.0, 1.0), repeat=2):
            correct = torch.full((200, n), rest).double()
            correct[:, 0] = own
            found = by_others(correct, 2, probes)
            assert (found.agreement[:, 0] == 0).all()


def test_from_two_completions_no_others_are_left():
    with pytest.raises(ValueError, match="n = 2"):
        by_others(torch.tensor([[1.0, 0.0]]), 1, torch.ones(1, 2))


def test_a_prompt_alone_with_its_gradient_is_held_against_exactly_nothing():
    """Its product with the others is 0, not what a difference of equal numbers rounds to."""
    for seed in range(20):
        g_k, g_1 = random_gradients(seed, prompts=8, width=300)
        g_k[1:], g_1[1:] = 0, 0
        assert products(g_k, g_1) == Products(0.0, 0.0, 0.0)
        assert (agreements(g_1) == 0).all()
