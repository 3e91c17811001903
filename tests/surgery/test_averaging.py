"""Averages over repeats, against the enumeration of all sequences of n completions."""

from collections import defaultdict
from itertools import product

import pytest
import torch

from surgery.averaging import given_distinct, known
from surgery.estimators import ESTIMATORS, by_count, largest_k
from surgery.objectives import prompt_weight, rho

# probabilities of all completions of a prompt, and which of them are correct
PROMPTS = [
    ([0.3, 0.25, 0.35, 0.1], [1, 1, 0, 0]),
    ([0.6, 0.1, 0.2, 0.1], [1, 0, 0, 0]),
    ([0.5, 0.3, 0.2], [1, 1, 1]),
    ([0.05, 0.9, 0.05], [0, 0, 0]),
    ([0.97, 0.02, 0.01], [0, 1, 0]),
]


def numbered(y):
    """Each completion's number among the distinct ones of its row."""
    rows = [{x: i for i, x in enumerate(dict.fromkeys(row))} for row in y.tolist()]
    return torch.tensor([[at[x] for x in row] for at, row in zip(rows, y.tolist(), strict=True)])


def sequences(prompt, n):
    """(completions, chances, which, log-probabilities, verdicts) of all sequences."""
    pi, correct = (torch.tensor(x, dtype=torch.float64) for x in prompt)
    y = torch.tensor(list(product(range(len(pi)), repeat=n)))
    which = numbered(y)
    return y, pi[y].prod(1), which, pi[y].log(), correct[y]


def totals(y, advantages, size):
    """[sequences, completions] what each distinct completion weighs in all."""
    return torch.zeros(len(y), size, dtype=torch.float64).scatter_add_(1, y, advantages)


def conditional_means(y, chances, values):
    """The mean of [sequences, ...] over all sequences of the same distinct completions."""
    alike = defaultdict(list)
    for i, row in enumerate(y.tolist()):
        alike[frozenset(row)].append(i)
    means = torch.zeros_like(values)
    for rows in alike.values():
        p = chances[rows] / chances[rows].sum()
        means[rows] = torch.einsum("i,i...->...", p, values[rows])
    return means


@pytest.mark.parametrize("n", range(2, 6))
@pytest.mark.parametrize("prompt", PROMPTS)
def test_conditional_means_of_every_estimator(prompt, n):
    """For every k; and with them the mean over everything, so that no bias comes or goes."""
    y, chances, which, logprobs, correct = sequences(prompt, n)
    law, size = given_distinct(which, logprobs, correct), len(prompt[0])
    for name, estimator in ESTIMATORS.items():
        for k in range(1, largest_k(name, n) + 1):
            plain = totals(y, estimator(correct, k), size)
            advantages = law.advantages(by_count(estimator, n, k))
            averaged = totals(y, advantages, size)
            expected = conditional_means(y, chances, plain)
            assert torch.allclose(averaged, expected, rtol=1e-11, atol=1e-13), (name, k)
            assert torch.allclose(chances @ averaged, chances @ plain, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("n", range(2, 6))
@pytest.mark.parametrize("prompt", PROMPTS)
def test_conditional_means_of_rates_and_weights(prompt, n):
    y, chances, which, logprobs, correct = sequences(prompt, n)
    law, c, every = given_distinct(which, logprobs, correct), correct.sum(1), torch.arange(n + 1)
    for of in (
        lambda c: c / n,
        lambda c: prompt_weight(n, c, n),
        lambda c: rho(n, c, 2),
    ):
        expected = conditional_means(y, chances, of(c))
        assert torch.allclose(law.mean(of(every.double())), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_the_variance_falls_where_completions_repeat(name):
    """Of the estimated gradient by the logits of the completions, summed over its entries."""
    n, k, prompt = 5, 2, PROMPTS[0]
    y, chances, which, logprobs, correct = sequences(prompt, n)
    pi = torch.tensor(prompt[0], dtype=torch.float64)

    def variance(advantages):
        a = totals(y, advantages, len(pi))
        gradient = a - a.sum(1, keepdim=True) * pi  # of a softmax
        return float(chances @ (gradient - chances @ gradient).square().sum(1))

    plain = ESTIMATORS[name](correct, k)
    averaged = given_distinct(which, logprobs, correct).advantages(by_count(ESTIMATORS[name], n, k))
    assert variance(averaged) < 0.9 * variance(plain)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_without_repeats_it_is_the_estimator(name):
    """Also beside prompts that do repeat; so is the table alone, of c as it was counted."""
    draw = torch.Generator().manual_seed(0)
    correct = torch.randint(0, 2, (40, 8), generator=draw).double()
    logprobs = -300 * torch.rand(40, 8, generator=draw)
    which = torch.arange(8).repeat(40, 1)
    which[:20, 3:] = 0
    correct[:20, 3:] = correct[:20, :1]
    table, plain = by_count(ESTIMATORS[name], 8, 3), ESTIMATORS[name](correct, 3)
    law = given_distinct(which, logprobs, correct)
    for found in (law.advantages(table), known(correct).advantages(table)):
        assert torch.allclose(found[20:], plain[20:], rtol=1e-14, atol=1e-16)
    assert not torch.allclose(law.advantages(table)[:20], plain[:20])
    assert torch.equal(law.mean(torch.arange(9.0).double())[20:], correct[20:].sum(1))
    assert torch.equal(known(correct).mean(torch.arange(9.0).double()), correct.sum(1))


def test_by_hand():
    """Two of three are distinct, pi = .6 (right) and .2 (wrong): P(right twice) = .6/(.6 + .2),
    whichever was.

    rloo of right: at c = 2 twice (1 - 1/2)/3, at c = 1 once 1/3; of wrong: -1/3 either way.
    """
    for which, correct in (([0, 1, 0], [1, 0, 1]), ([0, 1, 1], [1, 0, 0])):
        log = torch.tensor([[0.6, 0.2, 0.6 if which[2] == 0 else 0.2]]).double().log()
        law = given_distinct(torch.tensor([which]), log, torch.tensor([correct]))
        assert law.mean(torch.arange(4).double() / 3).tolist() == pytest.approx(
            [0.75 * 2 / 3 + 0.25 / 3]
        )
        table = by_count(ESTIMATORS["rloo"], 3, 1)
        a = law.advantages(table)[0]
        assert [float(a[torch.tensor(which) == i].sum()) for i in (0, 1)] == pytest.approx(
            [1 / 3, -1 / 3]
        )
        square = law.mean(torch.arange(4).double() ** 2)  # 4 or 1
        assert float(square) == pytest.approx(0.75 * 4 + 0.25)


@pytest.mark.parametrize("n", [2, 16, 256])
def test_extreme_probabilities(n):
    """What is all but certain, all but impossible, or impossible in floating point, is finite."""
    logs = [[-1e-12, -69.0], [-69.0, -69.0], [-2000.0, -2000.0], [-1e-12, -float("inf")]]
    logprobs, alternating = torch.tensor(logs).double(), torch.arange(n) % 2
    for places in (alternating, alternating.clamp(max=0), (torch.arange(n) > 0).long()):
        which = places.expand(len(logs), n)
        law = given_distinct(which, logprobs.gather(1, which), 1 - which)
        a = law.advantages(by_count(ESTIMATORS["loo"], n, 2))
        rate = law.mean(torch.arange(n + 1).double() / n)
        assert a.isfinite().all() and rate.isfinite().all()
        assert torch.allclose(law.chances.sum(1), torch.ones(len(logs)).double())
        expected = [1.0] * 4 if not places.any() else [(n - 1) / n, 0.5, 0.5, (n - 1) / n]
        assert rate.tolist() == pytest.approx(expected)


def test_float32_log_probabilities_are_enough():
    """Rounded as the sampler rounds them, all moves by as much and no more."""
    draw = torch.Generator().manual_seed(0)
    y = torch.randint(0, 6, (50, 16), generator=draw)
    which = numbered(y)
    correct = (y < 2).double()
    logprobs = (-8 * torch.rand(50, 6, generator=draw).double()).gather(1, y)
    noise = 1e-6 * torch.randn(50, 16, generator=draw).double()
    table = by_count(ESTIMATORS["loo"], 16, 8)
    exact, rounded = (
        given_distinct(which, x, correct).advantages(table)
        for x in (logprobs, (logprobs + noise).float())
    )
    assert (rounded - exact).abs().max() < 1e-5 * exact.abs().max()
