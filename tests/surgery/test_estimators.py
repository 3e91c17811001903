"""Each estimator against enumeration of all 2^n outcomes; formulas are written again here, with
math.comb.
"""

import math
from itertools import product

import pytest
import torch

from surgery.estimators import ESTIMATORS, OF_PASS_AT_K, entropy, largest_k
from surgery.objectives import prompt_weight

RATES = (0.05, 0.3, 0.8)


def comb_ratio(a, b, k):
    return math.comb(a, k) / math.comb(b, k)


def expectation(name, n, k, p, **options):
    """E[sum_i A_i d log pi(y_i)/dp] by enumeration."""
    f = torch.tensor(list(product([0, 1], repeat=n)), dtype=torch.float64)
    p = torch.tensor(p, dtype=torch.float64)
    chance = torch.where(f > 0, p, 1 - p).prod(1)
    score = torch.where(f > 0, 1 / p, -1 / (1 - p))
    return float(chance @ (ESTIMATORS[name](f, k, **options) * score).sum(1))


def by_counts(n, p, correct, wrong):
    """The same expectation from the advantage of a correct and of a wrong answer, given c."""
    total = 0.0
    for c in range(n + 1):
        chance = math.comb(n, c) * p**c * (1 - p) ** (n - c)
        total += chance * (
            (c * correct(c) / p if c else 0) - ((n - c) * wrong(c) / (1 - p) if c < n else 0)
        )
    return total


def by_weight(n, p, h):
    return sum(math.comb(n - 1, c) * p**c * (1 - p) ** (n - 1 - c) * h(c) for c in range(n))


@pytest.mark.parametrize("n", range(2, 9))
@pytest.mark.parametrize("name", ["loo", "pkpo", "pkpo_loo", "pkpo_loo1"])
def test_unbiased_for_pass_at_k(name, n):
    for k in range(1, int(largest_k(name, n)) + 1):
        for p in RATES:
            assert expectation(name, n, k, p) == pytest.approx(
                k * (1 - p) ** (k - 1), rel=1e-10, abs=1e-12
            )


@pytest.mark.parametrize("n", range(2, 9))
@pytest.mark.parametrize("p", RATES)
def test_finite_sample_expectations(n, p):
    assert expectation("rloo", n, 1, p) == pytest.approx(1.0)
    assert expectation("log", n, 1, p) == pytest.approx(by_weight(n, p, lambda c: n / (c + 1)))
    assert expectation("log", n, 1, p) == pytest.approx(
        sum((1 - p) ** j for j in range(n))
    )  # -log p cut at order n
    for alpha in (0.5, 1.0, 2.0):
        h = by_weight(n, p, lambda c, a=alpha: a * ((c + 1) / n) ** (a - 1))
        assert expectation("power", n, 1, p, alpha=alpha) == pytest.approx(h)

    def std(c):
        return math.sqrt(c / n * (1 - c / n))

    grpo = by_counts(
        n, p, lambda c: (1 - c / n) / (std(c) + 1e-6) / n, lambda c: -c / n / (std(c) + 1e-6) / n
    )
    assert expectation("grpo", n, 1, p) == pytest.approx(grpo)
    for beta in (0.5, 4.0):

        def advantage(f, c, b=beta):
            mean = (c * math.exp(b) + n - c) / n
            return (math.exp(b * f) / mean - 1) / b / n

        risk = by_counts(n, p, lambda c: advantage(1, c), lambda c: advantage(0, c))
        assert expectation("risk", n, 1, p, beta=beta) == pytest.approx(risk)
    for k in range(1, n + 1):

        def plug(c, k=k):
            return k * (1 - c / n) ** (k - 1) / n

        plugin = by_counts(
            n, p, lambda c: plug(c) * (1 - (c - 1) / (n - 1)), lambda c: -plug(c) * c / (n - 1)
        )
        assert expectation("plugin", n, k, p) == pytest.approx(plugin)

        def parts(c, k=k):
            mean = 1 - comb_ratio(n - c, n, k)
            return mean, math.sqrt(mean * (1 - mean))

        def right(c):
            mean, sigma = parts(c)
            return (1 - mean) / sigma / n if sigma else 0.0

        def wrong(c, k=k):
            mean, sigma = parts(c)
            return (1 - mean - comb_ratio(n - c - 1, n - 1, k - 1)) / sigma / n if sigma else 0.0

        assert expectation("passk_training", n, k, p) == pytest.approx(
            by_counts(n, p, right, wrong), abs=1e-12
        )


def test_printed_advantages():
    f = torch.tensor([[1, 0, 0, 0]])
    by_hand = {
        "rloo": [1 / 4, -1 / 12, -1 / 12, -1 / 12],
        "loo": [2 / 4, -2 / 4 * 2 / 3 / 3, -2 / 4 * 2 / 3 / 3, -2 / 4 * 2 / 3 / 3],
        "pkpo": [2 / 4, 2 / 4 / 3, 2 / 4 / 3, 2 / 4 / 3],
        "pkpo_loo1": [2 / 4 * 3 / 3, 0, 0, 0],
    }
    for name, expected in by_hand.items():
        assert ESTIMATORS[name](f, 2)[0].tolist() == pytest.approx(expected), name


def test_bias_of_the_plugin():
    assert expectation("plugin", 8, 4, 0.05) / (4 * 0.95**3) - 1 == pytest.approx(-0.30, abs=0.005)
    assert expectation("plugin", 8, 4, 0.8) / (4 * 0.2**3) - 1 == pytest.approx(3.29, abs=0.005)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_every_estimator(name):
    """float64 out of any verdicts, blind to order, finite without signal, and silent where a group
    says nothing.
    """
    f = torch.randint(0, 2, (6, 8), generator=torch.Generator().manual_seed(0))
    f[0], f[1] = 0, 1
    a = ESTIMATORS[name](f, 4)
    order = torch.tensor([3, 1, 0, 2, 7, 6, 5, 4])
    assert a.dtype == torch.float64 and a.isfinite().all() and a.shape == f.shape
    assert torch.allclose(ESTIMATORS[name](f[:, order], 4), a[:, order])
    assert torch.equal(ESTIMATORS[name](f.bool(), 4), a)
    assert a[0].abs().max() < 1e-12
    if name not in ("pkpo", "pkpo_loo"):  # theirs is no baseline that an all-right group would meet
        assert a[1].abs().max() < 1e-12


@pytest.mark.parametrize("name", ["loo", "pkpo", "pkpo_loo", "pkpo_loo1", "passk_training"])
def test_too_few_samples_for_k(name):
    with pytest.raises(ValueError, match="k"):
        ESTIMATORS[name](torch.ones(1, 4), int(largest_k(name, 4)) + 1)
    with pytest.raises(ValueError, match="n"):
        ESTIMATORS[name](torch.ones(1, 1), 1)


def test_entropy_by_hand():
    """(mean of the others' - own)/n: own -1, -2, -6, the others' means -4, -3.5, -1.5."""
    found = entropy(torch.tensor([[-1.0, -2.0, -6.0], [-0.1, -0.1, -0.1]]))
    assert found[0].tolist() == pytest.approx([-1.0, -0.5, 1.5])
    assert found[1].tolist() == [0, 0, 0]  # exactly: such prompts cost no row
    with pytest.raises(ValueError, match="n >= 2"):
        entropy(torch.zeros(3, 1))


@pytest.mark.parametrize("name", sorted(OF_PASS_AT_K))
def test_no_right_sample_no_update_whatever_the_weight(name):
    """A prompt without a right sample has the largest weight of all, k, and moves nothing."""
    nothing = torch.zeros(1, 16)
    assert prompt_weight(16, nothing.sum(1), 8).tolist() == [8.0]
    assert ESTIMATORS[name](nothing, 8).tolist() == [[0.0] * 16]
