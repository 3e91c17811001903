"""Advantages by counts and shells, and products of features and of probes, against all pairs."""

import pytest
import torch

import trainers.commands.diagnose as diagnosis
from surgery import geometry as gram
from surgery.estimators import ESTIMATORS
from surgery.interference import (
    EVERYTHING,
    PASS_1,
    WIDEST,
    FeatureSums,
    ProbeSums,
    advantage_table,
    cross,
    filtered,
    influence,
    members,
    most_negative,
    product,
    products,
    shells,
)

N = 12


def test_thresholds_are_strict():
    """By hand at n = 20, where rates fall on the thresholds."""
    kind = shells(torch.arange(21), 20).tolist()
    assert kind == [0, 1, 2, *[3] * 14, 4, 5, 6, 6]
    assert filtered(0.80, 0.15) == WIDEST == {0, 1, 2, 4, 5, 6}
    assert filtered(0.90, 0.05) == {0, 6} and filtered(0.85, 0.10) == {0, 1, 5, 6}


@pytest.mark.parametrize("level", [("plugin", 4), ("loo", 4), ("loo", 12), PASS_1])
def test_an_advantage_knows_the_verdict_and_the_count_alone(level):
    verdicts = (torch.rand(40, N, generator=torch.Generator().manual_seed(0)) < 0.4).double()
    expected = ESTIMATORS[level[0]](verdicts, level[1])
    table = advantage_table(level, N)[verdicts.sum(1).long()]
    assert torch.equal(torch.where(verdicts > 0, table[:, :1], table[:, 1:]), expected)


def population(prompts=60, width=6, seed=0):
    """(verdicts, features, sums over right and wrong answers) of a random population."""
    generator = torch.Generator().manual_seed(seed)
    p = torch.where(torch.rand(prompts, 1, generator=generator) < 0.6, 0.93, 0.05)
    right = torch.rand(prompts, N, generator=generator) < p
    u = torch.randn(prompts, N, width, generator=generator, dtype=torch.float64)
    both = torch.stack([right, ~right], 1).double()
    return right.double(), u, torch.einsum("isj,ijd->isd", both, u)


@pytest.mark.parametrize("group", [EVERYTHING, WIDEST, filtered(0.90, 0.05)])
def test_products_of_features_against_those_of_completions(group):
    right, u, sums = population()
    x = FeatureSums(right.sum(1).long(), N, sums)
    chosen = members(x, group)
    levels = [PASS_1, ("plugin", 5), ("loo", 5)]
    g = {
        level: gram.prompt_gradients(
            ESTIMATORS[level[0]](right[chosen], level[1]), u[chosen].flatten(0, 1)
        )
        for level in levels
    }
    assert torch.allclose(cross(x, PASS_1, PASS_1, group), gram.agreements(g[PASS_1]))
    for level in levels:
        expected = gram.products(g[level], g[PASS_1])
        assert product(x, level, PASS_1, group) == pytest.approx(expected.dot)
        assert product(x, level, level, group) == pytest.approx(expected.norm_k)
        naive = gram.products(g[level], g[PASS_1], "naive").dot
        assert x.naive(level, PASS_1, group) == pytest.approx(naive)
        phi = influence(x, level, PASS_1, group)
        assert float(phi.mean()) / 2 == pytest.approx(expected.dot)
    several = products(x, levels, PASS_1, group)
    assert several == pytest.approx([product(x, level, PASS_1, group) for level in levels])


def test_products_of_probes_against_double_loops():
    """Halves, and filters as sums of shells; a level measured over one filter alone is refused over
    another.
    """
    right, _, sums = population()
    counts, halves = right.sum(1).long(), torch.arange(60) % 2
    features = FeatureSums(counts, N, sums)
    kind, probes = shells(counts, N), {}
    for level, group in diagnosis.requests(4, N):
        g = features.gradients(level) * torch.isin(kind, torch.tensor(sorted(group)))[:, None]
        other = torch.stack([g[halves == 1].sum(0), g[halves == 0].sum(0)])[halves]
        probes[level, group] = torch.einsum("isd,id->is", sums, other)
    x = ProbeSums(counts, N, halves, probes)
    a, b = ("plugin", 4), PASS_1
    for group in (EVERYTHING, WIDEST, filtered(0.85, 0.10)):
        inside = members(x, group)
        g_a, g_b = features.gradients(a), features.gradients(b)
        sides = [(inside & (halves == s)).nonzero().squeeze(1).tolist() for s in (0, 1)]
        pairs = [(i, j) for i in sides[0] for j in sides[1]]
        expected = sum(float(g_a[i] @ g_b[j] + g_a[j] @ g_b[i]) for i, j in pairs) / 2 / len(pairs)
        assert product(x, a, b, group) == pytest.approx(expected)
        assert float(influence(x, a, b, group).mean()) / 2 == pytest.approx(expected)
    assert product(x, ("plugin", 2), b, WIDEST) == pytest.approx(
        product(x, b, ("plugin", 2), WIDEST)
    )
    with pytest.raises(KeyError, match="not measured"):
        cross(x, b, ("plugin", 2), EVERYTHING)


def test_the_most_negative_pairs():
    g_a, g_b = torch.randn(2, 300, 4, generator=torch.Generator().manual_seed(0)).double()
    whole = (g_a @ g_b.T).fill_diagonal_(torch.inf)
    i, j, value = most_negative(g_a, g_b, 3)[0]
    assert value == float(whole.min()) == float(whole[i, j])
    found = most_negative(g_a, g_b, 2)
    assert len([x for x in found if x[0] == 7]) == 2 and all(x[0] != x[1] for x in found)
