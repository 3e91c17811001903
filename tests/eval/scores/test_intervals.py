"""Intervals hold what they say: coverage by simulation, endpoints against direct formulas."""

import math

import pytest
import torch

from eval.scores.intervals import (
    bca,
    holm,
    jackknife,
    mcnemar,
    seeds_and_problems,
    spread,
    student,
    t_cdf,
    t_quantile,
    unknown,
)
from eval.scores.passk import interval
from surgery.objectives import rho

SIMULATIONS = 4_000


def rates(kind: str, problems: int, generator: torch.Generator) -> torch.Tensor:
    """Success rates of problems: Beta(.5, .5), or all the same."""
    if kind == "beta":
        angles = torch.rand(problems, generator=generator, dtype=torch.float64) * math.pi / 2
        return angles.sin().square()
    return torch.full((problems,), float(kind), dtype=torch.float64)


def true_score(kind: str, k: int) -> float:
    if kind == "beta":  # 1 - E (1-p)^k
        return 1 - math.exp(math.lgamma(k + 0.5) - math.lgamma(k + 1) - math.lgamma(0.5))
    return 1 - (1 - float(kind)) ** k


def coverage(kind: str, problems: int, n: int, k: int) -> float:
    generator = torch.Generator().manual_seed(0)
    table, truth = rho(n, torch.arange(n + 1), k), true_score(kind, k)
    size = torch.full((problems,), float(n), dtype=torch.float64)
    held = 0
    for _ in range(SIMULATIONS):
        counts = torch.binomial(size, rates(kind, problems, generator), generator).long()
        found = interval(table[counts])
        assert found["low"] is not None and found["high"] is not None
        held += found["low"] <= truth <= found["high"]
    return held / SIMULATIONS


@pytest.mark.parametrize("kind", ["beta", "0.01", "0.99"])
def test_coverage_of_pass_at_1_at_100_problems(kind):
    assert 0.93 <= coverage(kind, 100, 8, 1) <= 0.97


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["beta", "0.01", "0.99"])
def test_coverage_of_pass_at_1_at_500_problems(kind):
    assert 0.93 <= coverage(kind, 500, 32, 1) <= 0.97


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "problems", "n"),
    [("beta", 100, 8), ("0.01", 100, 8), ("beta", 500, 32), ("0.01", 500, 32)],
)
def test_coverage_of_pass_at_n(kind, problems, n):
    assert 0.93 <= coverage(kind, problems, n, n) <= 0.97


def test_where_nothing_fails_the_interval_says_how_much_could():
    """All p = .99: every problem is solved by 8 answers, and pass@8 is 1 - 1e-16."""
    found = interval(torch.ones(100))
    assert found["value"] == 1 and found["low"] == pytest.approx(0.025 ** (1 / 100))
    assert found["low"] <= true_score("0.99", 8) <= found["high"]
    assert interval(torch.zeros(100))["high"] == pytest.approx(1 - 0.025 ** (1 / 100))


@pytest.mark.parametrize("seeds", [3, 5])
def test_coverage_over_seeds(seeds):
    generator = torch.Generator().manual_seed(0)
    held = 0
    for _ in range(SIMULATIONS):
        found = student((0.1 + 0.03 * torch.randn(seeds, generator=generator)).tolist()).interval
        held += found["low"] <= 0.1 <= found["high"]
    assert 0.93 <= held / SIMULATIONS <= 0.97


def test_bca_against_the_formulas_on_direct_resamples():
    """Continuous data, where no step needs interpolation: Efron's eq. 2.3 and 6.5 as they stand."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(60, generator=generator).double().exp()
    means = x[torch.randint(60, (200_000, 60), generator=generator)].mean(1)
    normal = torch.distributions.Normal(0.0, 1.0)
    z0 = normal.icdf((means < x.mean()).double().mean())
    without = (x.sum() - x) / 59
    apart = without.mean() - without
    a = apart.pow(3).sum() / (6 * apart.square().sum() ** 1.5)
    z = z0 + torch.tensor([-1.959964, 1.959964])
    low, high = means.quantile(normal.cdf(z0 + z / (1 - a * z)).double()).tolist()
    estimate = bca(x, 50_000)
    assert estimate.interval["low"] == pytest.approx(low, rel=0.01)
    assert estimate.interval["high"] == pytest.approx(high, rel=0.01)
    assert estimate.below(high) == pytest.approx(0.975, abs=0.004)
    assert estimate.below(low) == pytest.approx(0.025, abs=0.004)


def test_the_same_sample_gives_the_same_interval():
    x = torch.rand(100, generator=torch.Generator().manual_seed(1)).double()
    assert bca(x).interval == bca(x).interval == bca(x.flip(0)).interval


def test_without_spread_nothing_is_known():
    nothing = {"value": 0.5, "low": None, "high": None}
    assert bca(torch.full((9,), 0.5)).interval == nothing
    assert student([0.5]).interval == student([0.5] * 3).interval == nothing
    assert jackknife(lambda places: 0.5, 3).interval == nothing
    assert unknown(0.5).p_value() == 1


@pytest.mark.parametrize("seeds", [3, 5])
def test_a_shared_base_is_no_change(seeds):
    """All seeds are held against one sampled evaluation of one base, and none changed anything.
    Over seeds alone far more than 5 % would look changed.
    """
    generator = torch.Generator().manual_seed(0)
    size, repeats = torch.full((50,), 8.0, dtype=torch.float64), 2_000
    plain = both = 0
    for _ in range(repeats):
        p = rates("beta", 50, generator)
        base = torch.binomial(size, p, generator) / 8
        after = torch.stack([torch.binomial(size, p, generator) / 8 for _ in range(seeds)])
        changes = (after - base).mean(1).tolist()
        plain += student(changes).p_value() < 0.05
        both += seeds_and_problems(after - base).p_value() < 0.05
    assert plain / repeats > 0.1 and both / repeats <= 0.055


def test_the_noise_of_single_values_counts_once():
    """It is in the spread of seeds and in that of problems; their sum would be twice the truth."""
    generator = torch.Generator().manual_seed(0)
    truth, found = 0.02**2 / 5 + 0.1**2 / 40 + 1 / 200, 0.0
    for _ in range(1_000):
        seeds, problems, single = (
            torch.randn(*shape, generator=generator) for shape in ((5, 1), (1, 40), (5, 40))
        )
        parts = spread(0.02 * seeds + 0.1 * problems + single)
        found += (parts.seeds + parts.added) / 1_000
    assert found == pytest.approx(truth, rel=0.1)


def test_pairing_detects_what_unpaired_intervals_miss():
    """pass@1 rises by .03 on problems that differ widely: paired intervals see it, two separate
    ones overlap.
    """
    generator = torch.Generator().manual_seed(0)
    paired = apart = 0
    size = torch.full((200,), 64.0, dtype=torch.float64)
    for _ in range(100):
        p = rates("beta", 200, generator) * 0.97
        before, after = (torch.binomial(size, x, generator) / 64 for x in (p, p + 0.03))
        paired += bca(after - before).interval["low"] > 0
        apart += interval(after)["low"] > interval(before)["high"]
    assert paired >= 95 and apart <= 5


def test_holm_controls_the_family():
    """Eight runs that changed nothing, held against one base: without Holm some run looks changed
    in far more than 5 % of the families.
    """
    generator = torch.Generator().manual_seed(0)
    families, plain, adjusted = 4_000, 0, 0
    for _ in range(families):
        base = torch.randn(5, generator=generator, dtype=torch.float64) / 2
        changes = torch.randn(8, 5, generator=generator, dtype=torch.float64) - base
        p = [student(x.tolist()).p_value() for x in changes]
        plain += min(p) < 0.05
        adjusted += min(holm(p)) < 0.05
    assert plain / families > 0.2 and adjusted / families <= 0.055


def test_holm_by_hand():
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.9, 0.6]) == [1.0, 1.0] and holm([]) == []


def test_a_margin_asks_for_more():
    x = student([0.10, 0.11, 0.12, 0.10])
    assert x.p_value() < x.p_value(0.05) < x.p_value(0.1) <= 1
    y = student([-v for v in (0.10, 0.11, 0.12, 0.10)])
    assert y.p_value(0.05) == pytest.approx(x.p_value(0.05))


def test_student_by_hand():
    x = student([1.0, 2.0, 3.0])
    assert x.interval["value"] == 2
    assert x.interval["high"] - 2 == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert student([5.0]).interval == {"value": 5.0, "low": None, "high": None}
    # 2 sd of 1/sqrt(3) from 0: t = 3.4641 on 2 degrees of freedom
    t = 2 * math.sqrt(3)
    assert x.p_value() == pytest.approx(1 - t / math.sqrt(2 + t * t))


@pytest.mark.parametrize(
    ("freedom", "quantile"),
    [(1, 12.7062), (2, 4.30265), (4, 2.77645), (9, 2.26216), (30, 2.04227)],
)
def test_quantiles_as_printed(freedom, quantile):
    assert t_quantile(0.975, freedom) == pytest.approx(quantile, rel=1e-5)


@pytest.mark.parametrize("freedom", range(1, 9))
def test_the_distribution_is_the_integral_of_its_density(freedom):
    scale = math.gamma((freedom + 1) / 2) / math.gamma(freedom / 2) / math.sqrt(freedom * math.pi)
    n, t = 20_000, 1.7
    grid = (t * (i + 0.5) / n for i in range(n))
    inside = scale * t / n * sum((1 + x * x / freedom) ** (-(freedom + 1) / 2) for x in grid)
    assert t_cdf(t, freedom) == pytest.approx(0.5 + inside, abs=1e-8)
    assert t_cdf(-t, freedom) == pytest.approx(0.5 - inside, abs=1e-8)


def test_jackknife_of_a_mean_is_student():
    x = [0.3, 0.1, 0.4, 0.25]
    found = jackknife(lambda places: sum(x[i] for i in places) / len(places), 4)
    assert found.interval == pytest.approx(student(x).interval)


def test_mcnemar_by_hand():
    assert mcnemar(0, 0) == 1 and mcnemar(5, 5) == 1
    assert mcnemar(0, 6) == mcnemar(6, 0) == 2 / 2**6
    assert mcnemar(1, 4) == pytest.approx(2 * (1 + 5) / 2**5)
