"""Each estimator against enumeration of all 2^n outcomes; formulas are written again here, with
math.comb.
"""

import math
import statistics
from itertools import product

import pytest
import torch

from surgery.estimators import (
    ESTIMATORS,
    OF_PASS_AT_K,
    entropy,
    largest_k,
    loo_shrunk,
    mixed_only,
    shrunk_baseline,
)
from surgery.objectives import prompt_weight

RATES = (0.05, 0.3, 0.8)
SEEN = [9, 0, 3, 1, 0, 2, 4, 1, 5]  # prompts of earlier batches by their correct answers


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


def by_inner_weight(n, p, u):
    """(n-1)/n E[u(1 + Bin(n-2, p))], the weight of an estimator u(c) (f_i - c/n)/n."""
    chances = [math.comb(n - 2, c) * p**c * (1 - p) ** (n - 2 - c) for c in range(n - 1)]
    return (n - 1) / n * sum(chance * u(c + 1) for c, chance in enumerate(chances))


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
    assert expectation("maxrl", n, 1, p) == pytest.approx(
        sum((1 - p) ** j for j in range(n - 1))
    )  # the derivative of log p, its series cut before order n
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


@pytest.mark.parametrize("n", range(2, 9))
@pytest.mark.parametrize("p", RATES)
def test_centred_estimators_have_the_weight_of_two_answers_fewer(n, p):
    """u written again, with statistics of the verdicts themselves and sums of slices."""

    def std(c):
        return statistics.pstdev([1] * c + [0] * (n - c)) + 1e-6

    def mean_exp(c, beta):
        return statistics.mean([math.exp(beta)] * c + [1] * (n - c))

    def training(c, k=2):
        mean = 1 - comb_ratio(n - c, n, k)
        sigma = math.sqrt(mean * (1 - mean))
        return n * (1 - mean) / (n - c) / sigma if sigma else 0.0

    seen = SEEN[: n + 1]
    for name, options, u in (
        ("grpo", {}, lambda c: 1 / std(c)),
        ("focal", {"gamma": 0.5}, lambda c: math.sqrt(1 - c / n) / std(c)),
        ("focal", {"gamma": 2.0}, lambda c: (1 - c / n) ** 2 / std(c)),
        ("maxrl", {}, lambda c: n / c),
        ("risk", {"beta": 3.0}, lambda c: (math.exp(3) - 1) / 3 / mean_exp(c, 3)),
        ("passk_training", {}, training),
        (
            "curverl",
            {"reference": torch.tensor(seen)},
            lambda c: seen[c] / sum(seen[1 : c + 1]) if any(seen[1:n]) and seen[c] else 0.0,
        ),
    ):
        if name == "curverl" and not any(seen[1:n]):
            continue  # then the batch is its own reference
        weight = by_inner_weight(n, p, u)
        assert expectation(name, n, 2, p, **options) == pytest.approx(weight, rel=1e-9), name


LIMITS = {  # weights of grad p for many samples, the derivatives of what the docstrings name
    ("grpo",): lambda p: 1 / math.sqrt(p * (1 - p)),
    ("focal", "gamma", 0.5): lambda p: 1 / math.sqrt(p),
    ("focal", "gamma", 1.0): lambda p: math.sqrt((1 - p) / p),
    ("maxrl",): lambda p: 1 / p,
    ("risk", "beta", 2.0): lambda p: (math.exp(2) - 1) / 2 / (1 - p + p * math.exp(2)),
    ("power", "alpha", 0.5): lambda p: 0.5 / math.sqrt(p),
    ("posterior_passk", "prior_wrong", 3.0): lambda p: 4 * (1 - p) ** 3,
    ("passk_training",): lambda p: (1 - p) ** 3 / math.sqrt((1 - (1 - p) ** 4) * (1 - p) ** 4),
}


@pytest.mark.parametrize("case", LIMITS)
def test_limit_for_many_samples(case):
    """At k = 4: the error is below 2 % at n = 2,000, and at least halved from n = 500."""
    name, *option = case
    options = dict([option]) if option else {}

    def weight(n, p):
        f = torch.arange(n) < torch.arange(n + 1)[:, None]
        right, wrong = ESTIMATORS[name](f, 4, **options)[:, [0, -1]].unbind(1)
        c = torch.arange(n + 1, dtype=torch.float64)
        chance = torch.distributions.Binomial(n, torch.tensor(p).double()).log_prob(c).exp()
        return float(chance @ (c * right / p - (n - c) * wrong / (1 - p)))

    for p in (0.1, 0.4, 0.7):
        limit = LIMITS[case](p)
        few, many = (abs(weight(n, p) / limit - 1) for n in (500, 2000))
        assert many < 0.02 and many < max(0.5 * few, 1e-6), p


@pytest.mark.parametrize("n", [2, 3, 8])
@pytest.mark.parametrize("k", [1, 2, 5, 32])
def test_posterior_passk(n, k):
    """h is the posterior mean of w_k, here by quadrature; k may exceed n; the expectation is that
    of h under the n-1 other answers.
    """
    a, b = 0.5, 2.0
    q = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    root = q**2  # dq = 2 sqrt(q) d sqrt(q): the density at 0 is then bounded

    def h(c):
        log = (a + c - 1) * root.log() + (b + n - 2 - c) * (1 - root).log() + q.log()
        density = (log - log.max()).exp()
        return float((density @ (k * (1 - root) ** (k - 1))) / density.sum())

    for p in RATES:
        found = expectation("posterior_passk", n, k, p, prior_right=a, prior_wrong=b)
        assert found == pytest.approx(by_weight(n, p, h), rel=1e-4)


def test_curverl_by_hand():
    """n = 4; 3 earlier prompts had one right answer, 1 had two, none three; pure ones do not count.

    f/F is 3/3, 1/4, 0/4. A batch without history, or with a history of pure prompts, is its own.
    """
    f = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1]])
    found = ESTIMATORS["curverl"](f, reference=torch.tensor([50, 3, 1, 0, 70]))
    assert found[:, 0].tolist() == pytest.approx([0.75 / 4, 0.25 * 0.5 / 4, 0, 0, 0])
    assert found[:, 3].tolist() == pytest.approx([-0.25 / 4, -0.25 * 0.5 / 4, 0, 0, 0])
    own = ESTIMATORS["curverl"](f)  # 1/1, 1/2, 1/3
    assert own[:, 0].tolist() == pytest.approx([0.75 / 4, 0.5 * 0.5 / 4, 0.25 / 3 / 4, 0, 0])
    assert torch.equal(ESTIMATORS["curverl"](f, reference=torch.tensor([50, 0, 0, 0, 70])), own)


def test_the_shrunk_baseline_leaves_the_mean_alone():
    """Two and three prompts of two and three answers, each outcome of the whole batch: every prompt
    has the weight of pass@k exactly.
    """
    for rates, n in (((0.2, 0.7), 3), ((0.1, 0.5, 0.9), 2)):
        for k in range(1, n + 1):
            weight = torch.zeros(len(rates), dtype=torch.float64)
            p = torch.tensor(rates, dtype=torch.float64)[:, None]
            for outcome in product([0, 1], repeat=len(rates) * n):
                f = torch.tensor(outcome, dtype=torch.float64).view(-1, n)
                chance = torch.where(f > 0, p, 1 - p).prod()
                score = torch.where(f > 0, 1 / p, -1 / (1 - p))
                weight += chance * (loo_shrunk(f, k) * score).sum(1)
            assert torch.allclose(weight, k * (1 - p[:, 0]) ** (k - 1), rtol=1e-12)


def test_the_shrunk_baseline_by_hand():
    """Three prompts of four: v and s of the first from the rates 1/2, 1/4 of the two others."""
    f = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0]])
    v = (0.5 * 0.5 + 0.25 * 0.75) / 3 / 2
    s = ((0.5 - 0.375) ** 2 + (0.25 - 0.375) ** 2) / 2
    share = 2 / 3 * v / (v + s)
    expected = [(1 - share) * own + share * 0.375 for own in (2 / 3, 2 / 3, 2 / 3, 1)]
    assert shrunk_baseline(f)[0].tolist() == pytest.approx(expected)
    assert torch.allclose(loo_shrunk(f[:1], 2), ESTIMATORS["loo"](f[:1], 2))
    solved = torch.tensor([[1, 0, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1]])  # no variance seen: its own
    assert shrunk_baseline(solved)[0].tolist() == pytest.approx([0, 1 / 3, 1 / 3, 1 / 3])


def test_a_shrunk_baseline_has_less_variance_from_few_samples():
    """64 prompts of two answers: mean squared advantages, which set the noise of the update."""
    generator = torch.Generator().manual_seed(0)
    p = torch.rand(64, 1, generator=generator, dtype=torch.float64)
    f = (torch.rand(200, 64, 2, generator=generator, dtype=torch.float64) < p).double()
    shrunk = torch.stack([loo_shrunk(x, 1) for x in f]).square().mean()
    assert float(shrunk / ESTIMATORS["rloo"](f.flatten(0, 1)).square().mean()) < 0.9


def filtered_weights(name, rates, n, k):
    """E[sum_j A_ij d log pi/dp_i] of each prompt under the filter, over outcomes of the batch."""
    p = torch.tensor(rates, dtype=torch.float64)[:, None]
    weight = torch.zeros(len(rates), dtype=torch.float64)
    for outcome in product([0, 1], repeat=len(rates) * n):
        f = torch.tensor(outcome, dtype=torch.float64).view(-1, n)
        chance = torch.where(f > 0, p, 1 - p).prod()
        score = torch.where(f > 0, 1 / p, -1 / (1 - p))
        weight += chance * (mixed_only(f) * ESTIMATORS[name](f, k) * score).sum(1)
    return weight


def test_the_filter_changes_the_length_of_a_step_and_biases_what_speaks_of_pure_groups():
    rates, n, k = (0.1, 0.6, 0.9), 3, 2
    mixed = [1 - p**n - (1 - p) ** n for p in rates]
    factors = []
    for i in range(3):
        a, b = (x for j, x in enumerate(mixed) if j != i)
        none, both = (1 - a) * (1 - b), a * b
        factors.append(3 * none + 3 / 2 * (1 - none - both) + both)  # E[3/(1 + M')]
    true = torch.tensor([k * (1 - p) ** (k - 1) for p in rates], dtype=torch.float64)
    scaled = torch.tensor(factors, dtype=torch.float64) * true
    assert torch.allclose(filtered_weights("loo", rates, n, k), scaled, rtol=1e-12)
    assert torch.allclose(filtered_weights("pkpo_loo1", rates, n, k), scaled, rtol=1e-12)
    for name in ("pkpo", "pkpo_loo"):
        assert not torch.allclose(filtered_weights(name, rates, n, k), scaled, rtol=0.05)
    assert mixed_only(torch.tensor([[0, 0], [1, 1]])).tolist() == [[0.0], [0.0]]


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
    speaks_if_wrong, speaks_if_right = {"loo_shrunk"}, {"pkpo", "pkpo_loo"}
    order = torch.tensor([3, 1, 0, 2, 7, 6, 5, 4])
    assert a.dtype == torch.float64 and a.isfinite().all() and a.shape == f.shape
    assert torch.allclose(ESTIMATORS[name](f[:, order], 4), a[:, order])
    assert torch.equal(ESTIMATORS[name](f.bool(), 4), a)
    assert (float(a[0].abs().max()) < 1e-12) == (name not in speaks_if_wrong)
    assert (float(a[1].abs().max()) < 1e-12) == (name not in speaks_if_right)


@pytest.mark.parametrize("name", sorted(OF_PASS_AT_K - {"plugin"}))
def test_too_few_samples_for_k(name):
    with pytest.raises(ValueError, match="k"):
        ESTIMATORS[name](torch.ones(1, 4), int(largest_k(name, 4)) + 1)
    with pytest.raises(ValueError, match="n"):
        ESTIMATORS[name](torch.ones(1, 1), 1)


def test_estimators_with_an_objective_of_their_own_take_any_k():
    for name in ESTIMATORS.keys() - OF_PASS_AT_K:
        assert largest_k(name, 4) == math.inf
        assert ESTIMATORS[name](torch.tensor([[1, 0, 0, 1]]), 9).isfinite().all()


def test_entropy_by_hand():
    """(mean of the others' - own)/n: own -1, -2, -6, the others' means -4, -3.5, -1.5."""
    found = entropy(torch.tensor([[-1.0, -2.0, -6.0], [-0.1, -0.1, -0.1]]))
    assert found[0].tolist() == pytest.approx([-1.0, -0.5, 1.5])
    assert found[1].tolist() == [0, 0, 0]  # exactly: such prompts cost no row
    with pytest.raises(ValueError, match="n >= 2"):
        entropy(torch.zeros(3, 1))


@pytest.mark.parametrize("name", sorted(OF_PASS_AT_K))
def test_no_right_sample_no_update_whatever_the_weight(name):
    """A prompt without a right sample has the largest weight of all, k, and moves nothing.

    That holds for `loo_shrunk` too, where no other prompt tells it of right samples.
    """
    nothing = torch.zeros(1, 16)
    assert prompt_weight(16, nothing.sum(1), 8).tolist() == [8.0]
    assert ESTIMATORS[name](nothing, 8).tolist() == [[0.0] * 16]
