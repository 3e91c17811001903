"""Interference of pass@k with pass@1 over a population of prompts, for all k at once.

All that an advantage knows of an answer is its verdict and its prompt's count c of correct ones. So
a prompt is two vectors, the sums u+ and u- of grad log pi over its correct and its wrong answers,
and every gradient estimate is g_i = A+(c_i) u+_i + A-(c_i) u-_i. What is kept of a prompt is these
two, as features (`FeatureSums`) or as products with a few directions (`ProbeSums`).

Prompts are filtered by their sampled success rate c/n, as in arXiv 2602.21189: easy above delta_1,
hard below delta_2. The thresholds cut the rates into shells, and every filter is a set of shells.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from surgery.estimators import ESTIMATORS

Level = tuple[str, float]  # an estimator and its k; `plugin` takes any real k >= 1
Group = frozenset[int]  # shells
PASS_1: Level = ("plugin", 1)  # which is rloo

EASY = (0.80, 0.85, 0.90)  # delta_1
HARD = (0.05, 0.10, 0.15)  # delta_2
MIDDLE = len(HARD)
SHELLS = len(HARD) + 1 + len(EASY)
EVERYTHING: Group = frozenset(range(SHELLS))
WIDEST: Group = EVERYTHING - {MIDDLE}  # easy > .80, hard < .15


def shells(counts: Tensor, n: int) -> Tensor:
    """0, 1, 2: below .05, .10, .15; 3: between; 4, 5, 6: above .80, .85, .90."""
    rate = (counts.double() / n)[..., None]
    below = (rate < torch.tensor(HARD, dtype=torch.float64)).sum(-1)
    above = (rate > torch.tensor(EASY, dtype=torch.float64)).sum(-1)
    return MIDDLE - below + above


def filtered(delta_1: float, delta_2: float) -> Group:
    """The shells of the easy (rate > delta_1) and of the hard (rate < delta_2)."""
    easy = range(MIDDLE + 1 + EASY.index(delta_1), SHELLS)
    return frozenset(easy) | frozenset(range(HARD.index(delta_2) + 1))


def advantage_table(level: Level, n: int) -> Tensor:
    """[n+1, 2] the advantage of a correct and of a wrong answer, by the count of correct ones.

    What no answer can be (correct at c = 0, wrong at c = n) meets an empty sum and does not matter.
    """
    name, k = level
    verdicts = torch.arange(n) < torch.arange(n + 1)[:, None]
    advantages = ESTIMATORS[name](verdicts, k)
    return torch.stack([advantages[:, 0], advantages[:, -1]], 1)


class Measured(Protocol):
    """Prompts' counts, and products of their gradients with means over the others."""

    @property
    def counts(self) -> Tensor:
        """[N]"""
        ...

    @property
    def n(self) -> int: ...

    @property
    def halves(self) -> Tensor:
        """[N] the half of each prompt; all 0 where there are none."""
        ...

    def received(self, b: Level, group: Group) -> Tensor:
        """[members, 2] <u+-_i, J_b>, J_b the mean of g_b over members that i has no part in."""
        ...


def members(x: Measured, group: Group) -> Tensor:
    """[N] whether each prompt is in the group."""
    return torch.isin(shells(x.counts, x.n), torch.tensor(sorted(group)))


def measurable(x: Measured, group: Group) -> bool:
    """Whether each member has others to be held against."""
    sizes = torch.bincount(x.halves[members(x, group)], minlength=int(x.halves.max()) + 1)
    return bool((sizes >= (1 if len(sizes) > 1 else 2)).all())


@dataclass(frozen=True)
class FeatureSums:
    """`sums` [N, 2, width] of features: all pairs of different prompts are used."""

    counts: Tensor
    n: int
    sums: Tensor

    @property
    def halves(self) -> Tensor:
        return torch.zeros_like(self.counts)

    def gradients(self, level: Level) -> Tensor:
        """[N, width] g_i."""
        table = advantage_table(level, self.n)[self.counts]
        return torch.einsum("is,isd->id", table, self.sums.double())

    def received(self, b: Level, group: Group) -> Tensor:
        chosen = members(self, group)
        u, g = self.sums[chosen].double(), self.gradients(b)[chosen]
        return (u @ g.sum(0) - torch.einsum("isd,id->is", u, g)) / (len(g) - 1)

    def naive(self, a: Level, b: Level, group: Group) -> float:
        """<J_a, J_b> with each prompt's product with itself, as means of one batch have it."""
        chosen = members(self, group)
        return float(self.gradients(a)[chosen].mean(0) @ self.gradients(b)[chosen].mean(0))


@dataclass(frozen=True)
class ProbeSums:
    """`probes` of (level, shells) hold [N, 2] <u+-_i, sum of g_b over those shells' prompts in the
    other half>.
    """

    counts: Tensor
    n: int
    halves: Tensor
    probes: Mapping[tuple[Level, Group], Tensor]

    def received(self, b: Level, group: Group) -> Tensor:
        parts = {block: x for (level, block), x in self.probes.items() if level == b}
        parts = parts if group in parts else {g: x for g, x in parts.items() if len(g) == 1}
        used = {group} if group in parts else {g for g in parts if g <= group}
        if frozenset[int]().union(*used) != group:
            raise KeyError(f"{b} was not measured over shells {sorted(group)}")
        chosen = members(self, group)
        total = torch.stack([parts[g] for g in used]).sum(0)[chosen].double()
        sizes = torch.bincount(self.halves[chosen], minlength=2)
        return total / sizes[1 - self.halves[chosen]][:, None]


def cross(x: Measured, a: Level, b: Level, group: Group) -> Tensor:
    """[members] <g_a,i, J_b>, J_b the mean over members that i has no part in. With a = b = pass@1
    these are the agreements.
    """
    return _against(x, a, x.received(b, group), group)


def _against(x: Measured, a: Level, received: Tensor, group: Group) -> Tensor:
    return (advantage_table(a, x.n)[x.counts[members(x, group)]] * received).sum(1)


def balanced_mean(values: Tensor, halves: Tensor) -> Tensor:
    """The mean over the halves of their means, over the first axis."""
    return torch.stack([values[halves == half].mean(0) for half in halves.unique()]).mean(0)


def product(x: Measured, a: Level, b: Level, group: Group) -> float:
    """<J_a, J_b> without any prompt's product with itself: unbiased if a and b are."""
    return products(x, [a], b, group)[0]


def products(x: Measured, levels: Sequence[Level], b: Level, group: Group) -> list[float]:
    """The same for many a at the cost of one."""
    received, halves = x.received(b, group), x.halves[members(x, group)]
    return [float(balanced_mean(_against(x, a, received, group), halves)) for a in levels]


def influence(x: Measured, a: Level, b: Level, group: Group) -> Tensor:
    """[members] <g_a,i, J_b> + <g_b,i, J_a>: what each prompt brings to the bilinear <J_a, J_b>.

    Its mean is twice the product. To first order a resample of prompts moves the product by as much
    as it moves this mean (Hoeffding's projection), and a prompt that is drawn twice never meets
    itself: no pair is formed anew.
    """
    return cross(x, a, b, group) + cross(x, b, a, group)


def most_negative(g_a: Tensor, g_b: Tensor, count: int) -> list[tuple[int, int, float]]:
    """(i, j, <g_a,i, g_b,j>) for the `count` most negative j != i of every i, smallest first; some
    rows at a time.
    """
    found = list[tuple[int, int, float]]()
    for start in range(0, len(g_a), 256):
        block = g_a[start : start + 256] @ g_b.T
        rows = torch.arange(len(block))
        block[rows, rows + start] = torch.inf
        values, places = block.topk(min(count, len(g_b)), largest=False)
        for row in rows.tolist():
            for value, j in zip(values[row].tolist(), places[row].tolist(), strict=True):
                if value < 0:
                    found.append((start + row, j, value))
    return sorted(found, key=lambda x: x[2])
