"""Intervals of means: BCa bootstrap over problems, Student's t over seeds, Holm, McNemar."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypedDict

import torch
from torch import Tensor

RESAMPLES = 2_000
LEVEL = 0.95


class Interval(TypedDict):
    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval; `below(x)` is the confidence that the truth is below x."""

    interval: Interval
    below: Callable[[float], float]

    def p_value(self, margin: float = 0.0) -> float:
        """Return the two-sided p-value that the truth lies within [-margin, margin]."""
        return min(1.0, 2 * min(self.below(margin), 1 - self.below(-margin)))


def unknown(value: float) -> Estimate:
    """Return an estimate without an interval, p = 1, for values without any spread."""
    return Estimate({"value": value, "low": None, "high": None}, lambda x: 0.5)


def bca(sample: Tensor, resamples: int = RESAMPLES, drawn_means: Tensor | None = None) -> Estimate:
    """Return the mean over problems by the BCa bootstrap (Efron 1987, eq. 2.3, 6.5).

    BCa is bias-corrected and accelerated. The endpoint of level a is the quantile
    Phi(z0 + (z0+z_a)/(1 - s (z0+z_a))) of the resampled means; z0 is their median bias, s the
    skewness of the sample over 6 sqrt(N). Scores are discrete (c of n), so the quantiles are
    interpolated in the mid-distribution: an endpoint on a step would cover too much or too little.
    The seed is fixed: the same sample gives the same interval. Without spread between problems the
    result is `unknown`. `drawn_means` are the means of resamples that are drawn already.
    """
    values, counts = _rounded(sample.double()).unique(return_counts=True)
    mean = float(sample.double().mean())
    if len(values) == 1:
        return unknown(mean)
    centred = values - mean
    square, cube = (float(counts.double() @ centred**power) for power in (2, 3))
    skew = cube / (6 * square**1.5)
    if drawn_means is None:
        drawn_means = _resampled_means(values, counts, resamples)
    steps, mass = _rounded(drawn_means).unique(return_counts=True)
    middle = (mass.cumsum(0) - mass / 2) / len(drawn_means)
    bias = normal_quantile(_interpolate(mean, steps, middle))

    def endpoint(level: float) -> float:
        z = bias + normal_quantile(level)
        return _interpolate(_normal(bias + z / (1 - skew * z)), middle, steps)

    def below(x: float) -> float:
        z = normal_quantile(_interpolate(x, steps, middle)) - bias
        return _normal(z / (1 + skew * z) - bias)

    ends = endpoint((1 - LEVEL) / 2), endpoint((1 + LEVEL) / 2)
    return Estimate({"value": mean, "low": ends[0], "high": ends[1]}, below)


def _resampled_means(values: Tensor, counts: Tensor, resamples: int) -> Tensor:
    """Return means of samples drawn with replacement.

    A multinomial over the distinct values needs one binomial per value instead of one draw per
    problem.
    """
    generator = torch.Generator().manual_seed(0)
    size = int(counts.sum())
    left = torch.full((resamples,), float(size), dtype=torch.float64)
    total = torch.zeros_like(left)
    remaining = size
    for value, count in zip(values.tolist(), counts.tolist(), strict=True):
        share = torch.full_like(left, count / remaining)
        drawn = left if count == remaining else torch.binomial(left, share, generator)
        total += value * drawn
        left, remaining = left - drawn, remaining - count
    return total / size


def _rounded(x: Tensor) -> Tensor:
    """Round, so that sums of the same scores in any order are the same number."""
    return (x * 1e10).round() / 1e10


def _interpolate(x: float, xs: Tensor, ys: Tensor) -> float:
    """Return the piecewise linear function through the points, constant beyond them."""
    right = int(torch.searchsorted(xs, torch.tensor(x, dtype=xs.dtype)))
    if right == 0 or right == len(xs):
        return float(ys[min(right, len(ys) - 1)])
    part = (x - float(xs[right - 1])) / float(xs[right] - xs[right - 1])
    return float(ys[right - 1]) * (1 - part) + float(ys[right]) * part


def _normal(z: float) -> float:
    return math.erfc(-z / math.sqrt(2)) / 2


def normal_quantile(p: float) -> float:
    return float(torch.special.ndtri(torch.tensor(p, dtype=torch.float64)))


def student(values: Sequence[float]) -> Estimate:
    """Return the mean over seeds with Student's t; a single seed has no interval."""
    n = len(values)
    mean = math.fsum(values) / n
    if n == 1:
        return unknown(mean)
    return _student(mean, math.fsum((x - mean) ** 2 for x in values) / (n - 1) / n, n - 1)


@dataclass(frozen=True)
class Spread:
    """Variances of a mean over random seeds and random problems.

    All seeds share the problems (and, in a change, the base's evaluation), so their spread does not
    contain the choice of problems. The variance from the problems is therefore added to the
    variance over seeds. Both contain the noise of single values, which counts once (clustering in
    two ways: Cameron, Gelbach and Miller 2011). The degrees of freedom are Welch and
    Satterthwaite's, rounded down.
    """

    seeds: float
    problems: float  # of means over seeds
    single: float
    freedom: int

    @property
    def added(self) -> float:
        return max(0.0, self.problems - self.single)


def spread(values: Tensor) -> Spread:
    """Return the spread of the mean of values [seed, problem]; one seed shows no seed variance."""
    n, size = values.shape
    by_problem = values.mean(0)
    problems = float(by_problem.var()) / size
    if n == 1:
        return Spread(0.0, problems, 0.0, size - 1)
    by_seed = values.mean(1)
    rest = values - by_seed[:, None] - by_problem + values.mean()
    seeds, cells = float(by_seed.var()) / n, (n - 1) * (size - 1)
    single = float(rest.square().sum()) / (cells * n * size)
    variances = Spread(seeds, problems, single, n - 1)
    squares = seeds**2 / (n - 1) + problems**2 / (size - 1) + single**2 / cells
    if squares == 0:
        return variances
    freedom = max(n - 1, int((seeds + variances.added) ** 2 / squares))
    return replace(variances, freedom=freedom)


def seeds_and_problems(values: Tensor) -> Estimate:
    """Return Student's t of the mean of values [seed, problem], both random."""
    variances = spread(values)
    variance = variances.seeds + variances.added
    return _student(float(values.mean()), variance, variances.freedom)


def _student(mean: float, variance: float, freedom: int) -> Estimate:
    if variance == 0:
        return unknown(mean)
    error = math.sqrt(variance)
    half = t_quantile((1 + LEVEL) / 2, freedom) * error
    return Estimate(
        {"value": mean, "low": mean - half, "high": mean + half},
        lambda x: t_cdf((x - mean) / error, freedom),
    )


def jackknife(statistic: Callable[[Sequence[int]], float], seeds: int) -> Estimate:
    """Return Student's t over pseudo-values n f(all) - (n-1) f(all but one) of seeds."""
    everything = range(seeds)
    value = statistic(everything)
    if seeds == 1:
        return unknown(value)
    without = [statistic([j for j in everything if j != i]) for i in everything]
    pseudo = student([seeds * value - (seeds - 1) * x for x in without])
    shift = value - pseudo.interval["value"]  # centre the jackknife's interval on the statistic
    low, high = pseudo.interval["low"], pseudo.interval["high"]
    if low is None or high is None:
        return unknown(value)
    moved: Interval = {"value": value, "low": low + shift, "high": high + shift}
    return Estimate(moved, lambda x: pseudo.below(x - shift))


def t_cdf(t: float, freedom: int) -> float:
    """Return Student's distribution at t, exact for an integer number of degrees of freedom.

    Source: Abramowitz and Stegun, 26.7.3 and 26.7.4.
    """
    angle = math.atan2(t, math.sqrt(freedom))
    sine, square = math.sin(angle), math.cos(angle) ** 2
    odd = freedom % 2
    term, total = (math.cos(angle) if odd else 1.0), 0.0
    for i in range(freedom // 2):
        total += term
        term *= square * ((2 * i + 2) / (2 * i + 3) if odd else (2 * i + 1) / (2 * i + 2))
    inside = 2 / math.pi * (angle + sine * total) if odd else sine * total
    return (1 + inside) / 2


def t_quantile(level: float, freedom: int) -> float:
    """Return the t with `t_cdf` = level, by bisection over its angle."""
    low, high = -math.pi / 2, math.pi / 2
    for _ in range(80):
        angle = (low + high) / 2
        below = t_cdf(math.sqrt(freedom) * math.tan(angle), freedom) < level
        low, high = (angle, high) if below else (low, angle)
    return math.sqrt(freedom) * math.tan((low + high) / 2)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's adjusted p-values, which bound the error rate of the family (Holm 1979).

    The i-th smallest of m is multiplied by m - i + 1, and no adjusted value is below that of a
    smaller p-value.
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, p_values[i] * (len(p_values) - rank)))
        adjusted[i] = largest
    return adjusted


def mcnemar(gained: int, lost: int) -> float:
    """Return the exact two-sided p-value of as many gains as losses, a fair coin per change."""
    n = gained + lost
    tail = sum(math.comb(n, i) for i in range(min(gained, lost) + 1))
    return min(1.0, 2 * tail / 2**n)
