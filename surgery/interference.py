"""Interference of pass@k with pass@1 over a population of prompts, for all k at once.

An advantage depends only on the answer's verdict and on the count c of correct answers to its
prompt. So two vectors describe a prompt: the sums u+ and u- of grad log pi over its correct and its
wrong answers. Every gradient estimate is g_i = A+(c_i) u+_i + A-(c_i) u-_i. The classes below hold
these two sums as features (`FeatureSums`) or as products with a few directions (`ProbeSums`).

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
PASS_1: Level = ("plugin", 1)  # equal to rloo

EASY = (0.80, 0.85, 0.90)  # delta_1
HARD = (0.05, 0.10, 0.15)  # delta_2
MIDDLE = len(HARD)
SHELLS = len(HARD) + 1 + len(EASY)
EVERYTHING: Group = frozenset(range(SHELLS))
WIDEST: Group = EVERYTHING - {MIDDLE}  # easy > .80, hard < .15


def shells(counts: Tensor, n: int) -> Tensor:
    """Return 0, 1, 2 below .05, .10, .15; 3 between; 4, 5, 6 above .80, .85, .90."""
    rate = (counts.double() / n)[..., None]
    below = (rate < torch.tensor(HARD, dtype=torch.float64)).sum(-1)
    above = (rate > torch.tensor(EASY, dtype=torch.float64)).sum(-1)
    return MIDDLE - below + above


def filtered(delta_1: float, delta_2: float) -> Group:
    """Return the shells of the easy (rate > delta_1) and the hard (rate < delta_2) prompts."""
    easy = range(MIDDLE + 1 + EASY.index(delta_1), SHELLS)
    return frozenset(easy) | frozenset(range(HARD.index(delta_2) + 1))


def advantage_table(level: Level, n: int) -> Tensor:
    """Return the advantages [n+1, 2] of a correct and a wrong answer, by the count c.

    c is the number of correct answers. The impossible entries (correct at c = 0, wrong at c = n)
    only multiply empty sums.
    """
    name, k = level
    verdicts = torch.arange(n) < torch.arange(n + 1)[:, None]
    advantages = ESTIMATORS[name](verdicts, k)
    return torch.stack([advantages[:, 0], advantages[:, -1]], 1)


class Measured(Protocol):
    """Counts of prompts, and products of their gradients with means over other prompts."""

    @property
    def counts(self) -> Tensor:
        """The number of correct answers to each prompt, [N]."""
        ...

    @property
    def n(self) -> int: ...

    @property
    def halves(self) -> Tensor:
        """The half of each prompt, [N]; all 0 if there are no halves."""
        ...

    def received(self, b: Level, group: Group) -> Tensor:
        """Return <u+-_i, J_b> [members, 2], J_b the mean of g_b over members independent of i."""
        ...


def members(x: Measured, group: Group) -> Tensor:
    """Return [N] bool: whether each prompt is in the group."""
    return torch.isin(shells(x.counts, x.n), torch.tensor(sorted(group)))


def measurable(x: Measured, group: Group) -> bool:
    """Return whether each member has other members to be multiplied with."""
    sizes = torch.bincount(x.halves[members(x, group)], minlength=int(x.halves.max()) + 1)
    return bool((sizes >= (1 if len(sizes) > 1 else 2)).all())


@dataclass(frozen=True)
class FeatureSums:
    """Sums of features [N, 2, width]; products use all pairs of different prompts."""

    counts: Tensor
    n: int
    sums: Tensor

    @property
    def halves(self) -> Tensor:
        return torch.zeros_like(self.counts)

    def gradients(self, level: Level) -> Tensor:
        """Return g_i [N, width]."""
        table = advantage_table(level, self.n)[self.counts]
        return torch.einsum("is,isd->id", table, self.sums.double())

    def received(self, b: Level, group: Group) -> Tensor:
        chosen = members(self, group)
        u, g = self.sums[chosen].double(), self.gradients(b)[chosen]
        return (u @ g.sum(0) - torch.einsum("isd,id->is", u, g)) / (len(g) - 1)

    def naive(self, a: Level, b: Level, group: Group) -> float:
        """Return <J_a, J_b> of batch means, including each prompt's product with itself."""
        chosen = members(self, group)
        return float(self.gradients(a)[chosen].mean(0) @ self.gradients(b)[chosen].mean(0))


@dataclass(frozen=True)
class ProbeSums:
    """Products of each prompt's sums with gradients of the other half.

    `probes` of (level, shells) hold [N, 2] <u+-_i, sum of g_b over those shells' prompts in the
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
    """Return <g_a,i, J_b> [members], J_b the mean over members independent of i.

    With a = b = pass@1 these are the agreements.
    """
    return _against(x, a, x.received(b, group), group)


def _against(x: Measured, a: Level, received: Tensor, group: Group) -> Tensor:
    return (advantage_table(a, x.n)[x.counts[members(x, group)]] * received).sum(1)


def balanced_mean(values: Tensor, halves: Tensor) -> Tensor:
    """Return the mean over the halves of their means, over the first axis."""
    return torch.stack([values[halves == half].mean(0) for half in halves.unique()]).mean(0)


def product(x: Measured, a: Level, b: Level, group: Group) -> float:
    """Return <J_a, J_b> without products of a prompt with itself; unbiased if a and b are."""
    return products(x, [a], b, group)[0]


def products(x: Measured, levels: Sequence[Level], b: Level, group: Group) -> list[float]:
    """Return `product` for many a at the cost of one."""
    received, halves = x.received(b, group), x.halves[members(x, group)]
    return [float(balanced_mean(_against(x, a, received, group), halves)) for a in levels]


def influence(x: Measured, a: Level, b: Level, group: Group) -> Tensor:
    """Return <g_a,i, J_b> + <g_b,i, J_a> [members]: each prompt's share in the bilinear <J_a, J_b>.

    Its mean is twice the product. To first order a resample of prompts changes the product as it
    changes this mean (Hoeffding's projection). A prompt drawn twice is never multiplied with
    itself, because no new pairs are formed.
    """
    return cross(x, a, b, group) + cross(x, b, a, group)


def most_negative(g_a: Tensor, g_b: Tensor, count: int) -> list[tuple[int, int, float]]:
    """Return (i, j, <g_a,i, g_b,j>) for the `count` most negative j != i of every i.

    The smallest product comes first. The products are computed some rows at a time.
    """
    pairs = list[tuple[int, int, float]]()
    for start in range(0, len(g_a), 256):
        block = g_a[start : start + 256] @ g_b.T
        rows = torch.arange(len(block))
        block[rows, rows + start] = torch.inf
        values, places = block.topk(min(count, len(g_b)), largest=False)
        for row in rows.tolist():
            for value, j in zip(values[row].tolist(), places[row].tolist(), strict=True):
                if value < 0:
                    pairs.append((start + row, j, value))
    return sorted(pairs, key=lambda x: x[2])
