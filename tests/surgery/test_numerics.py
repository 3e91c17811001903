"""Extreme counts, rates, weights and products against exact arithmetic: right, or refused."""

import math
from fractions import Fraction

import mpmath
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from surgery.estimators import ESTIMATORS, OF_PASS_AT_K, below_the_others, largest_k
from surgery.geometry import Geometry, Products, by_others, products, psd, smoothed
from surgery.objectives import miss, pass_at_k, pass_at_k_weight, prompt_weight, rho
from surgery.rules import AGREEMENT, NORM_K, PRODUCTS, RULES
from surgery.tokens import divergence

QUICK = settings(max_examples=15, deadline=None, database=None, derandomize=True)
TINY = 2.0**-1022  # the least normal float64


@st.composite
def counts(draw, most=2_000):
    """(n, c, k), the corners often: k = 1, k = n, all wrong, all right, n = 2."""
    n = draw(st.sampled_from([2, 3, 1_000]) | st.integers(2, most))
    c = draw(st.sampled_from([0, 1, n - 1, n]) | st.integers(0, n))
    k = draw(st.sampled_from([1, 2, n - 1, n]) | st.integers(1, n))
    return n, c, k


def exact_miss(n, c, k):
    return Fraction(math.comb(n - c, k), math.comb(n, k)) if 0 <= k <= n else Fraction(0)


@QUICK
@given(counts())
def test_counts_are_exact(given):
    """By fractions. Below the least normal number what is left is at most that."""
    n, c, k = given
    for found, expected in (
        (miss(n, torch.tensor(c), k), exact_miss(n, c, k)),
        (prompt_weight(n, torch.tensor(c), k), k * exact_miss(n, c, k - 1)),
    ):
        assert float(found) == pytest.approx(float(expected), rel=1e-11, abs=TINY * 1e3)
        assert (float(found) == 0) == (expected == 0) or float(expected) < TINY * 1e3
    assert float(rho(n, torch.tensor(c), k)) == pytest.approx(
        float(1 - exact_miss(n, c, k)), rel=1e-9, abs=1e-13
    )


@QUICK
@given(
    st.floats(0, 1) | st.floats(0, 1e-12) | st.floats(0, 1e-12).map(lambda x: 1 - x),
    st.sampled_from([1, 2, 8, 1_000, 100_000]),
)
def test_rates_near_0_and_1(p, k):
    """f_k and w_k to mpmath with 60 digits: for p = 1e-300, for p = 1 - 1e-16 and k = 1,000."""
    with mpmath.workdps(400):
        q = 1 - mpmath.mpf(p)
        rate, weight = 1 - q**k, k * q ** (k - 1)
        rate, weight = float(rate), float(weight)
    x = torch.tensor(p, dtype=torch.float64)
    assert float(pass_at_k(x, k)) == pytest.approx(rate, rel=1e-12, abs=TINY)
    # 1 - p is rounded once, and the power magnifies it k times
    assert float(pass_at_k_weight(x, k)) == pytest.approx(weight, rel=2e-16 * k + 1e-14, abs=TINY)


def exact_advantages(name, n, c, k):
    """(of a correct, of a wrong answer) by fractions, None where there is no such answer."""

    def weighted(h, f):
        others = c - f
        return h(others) * (f - Fraction(others, n - 1)) / n

    def loo(f):
        return weighted(lambda o: k * exact_miss(n - 1, o, k - 1), f)

    def rate(n, c, k):
        return 1 - exact_miss(n, c, k)

    def pkpo(f):
        return Fraction(k, n) * (1 if f else rate(n - 1, c, k - 1))

    each = {
        "rloo": lambda f: weighted(lambda o: 1, f),
        "plugin": lambda f: weighted(lambda o: k * (1 - Fraction(c, n)) ** (k - 1), f),
        "loo": loo,
        "pkpo": pkpo,
        "pkpo_loo": lambda f: pkpo(f) - Fraction(k, n - 1) * rate(n - 1, c - f, k),
        "pkpo_loo1": lambda f: (
            f * Fraction(k, n) * exact_miss(n - 1, c - 1, k - 1)
            if k > 1
            else weighted(lambda o: 1, f)
        ),
        "maxrl": lambda f: (f - Fraction(c, n)) / max(c, 1),
    }[name]
    return [each(1) if c else None, each(0) if c < n else None]


@pytest.mark.parametrize(
    "name", ["rloo", "plugin", "loo", "pkpo", "pkpo_loo", "pkpo_loo1", "maxrl"]
)
@QUICK
@given(counts(200))
def test_advantages_are_exact(name, given):
    n, c, k = given
    assume(k <= largest_k(name, n))
    a = ESTIMATORS[name]((torch.arange(n) < c)[None], k)[0].tolist()
    for value, expected in zip((a[0], a[-1]), exact_advantages(name, n, c, k), strict=True):
        if expected is not None:
            # differences of terms of size k/n: what cancels leaves their rounding
            assert value == pytest.approx(float(expected), rel=1e-9, abs=1e-12 * max(1, k / n))


@pytest.mark.parametrize("name", ESTIMATORS)
@QUICK
@given(counts(300))
def test_every_estimator_is_finite_or_refuses(name, given):
    n, c, k = given
    verdicts = (torch.arange(n) < c)[None]
    if name in OF_PASS_AT_K - {"plugin"} and k > largest_k(name, n):
        with pytest.raises(ValueError, match="k"):
            ESTIMATORS[name](verdicts, k)
        return
    a = ESTIMATORS[name](verdicts, k)
    assert a.dtype == torch.float64 and a.isfinite().all()
    if c == 0 or (c == n and name not in ("pkpo", "pkpo_loo")):
        assert a.abs().max() < 1e-9  # an all-wrong or all-right group says nothing


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.bfloat16, torch.float16])
def test_verdicts_of_any_type_count_exactly(dtype):
    """bfloat16 cannot count beyond 256: sums are taken in float64."""
    verdicts = (torch.arange(1_000) < 777)[None]
    for name, estimator in ESTIMATORS.items():
        assert torch.equal(estimator(verdicts.to(dtype), 8), estimator(verdicts, 8)), name


NUMBERS = st.sampled_from([0.0, 1e-300, -1e-300, 1e-30, -1.0, 1.0, 1e30, -1e30]) | st.floats(
    -1e6, 1e6
)


@pytest.mark.parametrize("name", RULES)
@QUICK
@given(NUMBERS, NUMBERS.map(abs), NUMBERS.map(abs), st.sampled_from([2, 5]))
def test_rules_are_finite_at_any_product(name, dot, norm_1, norm_k, prompts):
    """Zero |J_1|, products that over- and underflow, weights at their ends."""
    weights = torch.tensor([0.0, 1_000.0, 1e-300, 1.0, 8.0], dtype=torch.float64)[:prompts]
    agreement = torch.tensor([0.0, dot, -dot, 1e-300, -1e30], dtype=torch.float64)[:prompts]
    needs = RULES[name].needs
    found = psd(Products(dot, norm_1, norm_k if NORM_K in needs else math.nan))
    seen = Geometry(
        torch.linspace(0, 1, prompts).double(),
        found if PRODUCTS in needs else None,
        agreement if AGREEMENT in needs else None,
    )
    alpha, beta = RULES[name].function(weights, seen, {})
    assert alpha.isfinite().all() and beta.isfinite().all()
    assert (alpha >= 0).all() and (beta >= 0).all() and (beta <= 10).all()


@QUICK
@given(st.lists(NUMBERS, min_size=3, max_size=3))
def test_the_nearest_gram_is_one(values):
    x = psd(Products(*values))
    size = max(map(abs, values))
    assert x.norm_1 >= 0 and (x.norm_1 > 0 or x.norm_k >= 0)
    assert x.norm_1 == 0 or x.norm_k >= -1e-15 * size
    assert x.norm_1 == 0 or x.norm_1 * x.norm_k - x.dot**2 >= -1e-14 * size**2
    assert -1 <= x.cosine <= 1
    assert smoothed(x, None, 0.9) == x


def test_one_prompt_has_no_others():
    """Not a number, which no rule ever sees: train.prompts=1 with loo is refused."""
    from trainers.config.load import load_config
    from trainers.config.values import ConfigError

    with pytest.raises(ZeroDivisionError):
        products(torch.ones(1, 3), torch.ones(1, 3))
    with pytest.raises(ConfigError, match=r"train.prompts = 1: .* use 2 or more"):
        load_config("configs/passk.yaml", ["train.prompts=1"])
    assert products(torch.ones(1, 3), torch.ones(1, 3), "naive").norm_1 == 3


@pytest.mark.parametrize("right", [0, 3])
def test_groups_that_say_nothing_have_no_agreement(right):
    verdicts = (torch.arange(3) < right)[None].double()
    probes = torch.tensor([[1e30, -1e-30, 7.0]], dtype=torch.float64)
    assert by_others(verdicts, 2, probes).agreement.abs().max() <= 1e30 * 1e-15


@QUICK
@given(st.lists(st.floats(-200, 0), min_size=4, max_size=4), st.booleans())
def test_divergence_of_extreme_log_probabilities(values, half):
    """Against float64 from the formula, also of bfloat16 log-probabilities."""
    logp = torch.tensor(values).view(1, 2, 2).to(torch.bfloat16 if half else torch.float32)
    reference = logp.flip(1)
    k3, weights = divergence(logp, reference)
    by_hand = [
        sum(math.exp(b - a) - 1 - (b - a) for a, b in zip(row, other, strict=True))
        for row, other in zip(logp[0].tolist(), reference[0].tolist(), strict=True)
    ]
    assert k3[0].tolist() == pytest.approx(by_hand, rel=1e-9, abs=1e-12)
    assert weights.isfinite().all() and (k3 >= 0).all()


@QUICK
@given(st.lists(st.floats(-1e30, 1e30), min_size=2, max_size=8))
def test_baselines_of_extreme_values_cancel(values):
    exact = [Fraction(x) for x in values]
    n = len(values)
    expected = [float((sum(exact) - n * x) / (n * (n - 1))) for x in exact]
    found = below_the_others(torch.tensor([values], dtype=torch.float64))[0].tolist()
    scale = max(map(abs, values))
    assert found == pytest.approx(expected, rel=1e-12, abs=1e-15 * scale)
