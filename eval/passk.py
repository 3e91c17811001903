"""Unbiased pass@k and majority votes over problems, and the paired change between two evaluations.

A record has at least {id, n, c}: n answers to one problem, c of them right. What else records hold
is said in `eval.harness`.
"""

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from eval.intervals import Estimate, Interval, bca
from surgery.objectives import rho

Record = Mapping[str, Any]
FEW = 5


def ladder(k: int) -> list[int]:
    """1, 2, 4, ... up to k, and k itself."""
    return [*(2**i for i in range(k.bit_length()) if 2**i < k), k]


def problem_scores(records: Sequence[Record], k: int) -> Tensor:
    """rho(n, c, k) of each problem; every problem needs n >= k samples."""
    return torch.stack([rho(r["n"], torch.tensor(r["c"]), k) for r in records])


def too_few(records: Sequence[Record]) -> bool:
    """Whether fewer than five problems were solved at all, or failed at all.

    Then no method's interval of 95 % holds what it says: with two of 100 problems solvable it
    covers about 85 %.
    """
    solved, failed = sum(r["c"] > 0 for r in records), sum(r["c"] < r["n"] for r in records)
    return min(solved, failed) < FEW


def interval(scores: Tensor) -> Interval:
    """BCa over problems. Scores that are all 0 or all 1 say how far the truth can be from there:
    with N problems, 1 - 0.025^(1/N) at most (Clopper and Pearson 1934).
    """
    found = bca(scores).interval
    room = 1 - 0.025 ** (1 / len(scores))
    if float(scores.max()) == 0:
        return {**found, "high": room}
    if float(scores.min()) == 1:
        return {**found, "low": 1 - room}
    return found


def scores(records: Sequence[Record], ks: Sequence[int]) -> dict[str, Interval]:
    return {f"pass@{k}": interval(problem_scores(records, k)) for k in ks}


def standard_error(records: Sequence[Record]) -> float:
    """Of pass@1, over problems: the answers to one problem are not independent."""
    if len(records) < 2:
        return math.nan
    return float(problem_scores(records, 1).std() / math.sqrt(len(records)))


def change(before: Sequence[Record], after: Sequence[Record], k: int) -> Estimate:
    """after - before on the same problems: pairing removes the spread between problems from the
    interval.
    """
    if [r["id"] for r in before] != [r["id"] for r in after]:
        raise ValueError("a paired change needs the same problems in the same order")
    return bca(problem_scores(after, k) - problem_scores(before, k))


def changes(
    before: Sequence[Record], after: Sequence[Record], ks: Sequence[int]
) -> dict[str, Interval]:
    return {f"pass@{k}": change(before, after, k).interval for k in ks}


def majority_scores(records: Sequence[Record], ks: Sequence[int]) -> dict[str, Interval]:
    """maj@k over problems, from each record's count of every `wrong` answer."""
    tables = [
        majority(r["n"], r["c"], tuple(sorted(r["wrong"].values())), tuple(ks)) for r in records
    ]
    by_k = torch.tensor(tables, dtype=torch.float64).T
    return {f"maj@{k}": interval(by_k[i]) for i, k in enumerate(ks)}


@lru_cache(maxsize=100_000)
def majority(n: int, c: int, wrong: tuple[int, ...], ks: tuple[int, ...]) -> list[float]:
    """For each k, the chance that the right answer wins the vote of k of the n answers.

    They are drawn without replacement. c of the n are right, `wrong` counts each wrong answer; what
    is left gave no answer and has no vote. A tie is broken by lot. With t votes for the right
    answer, the others are counted by a product of polynomials: in x for how many were drawn, and
    in y for how many of the wrong answers have t votes too.
    """
    most = max(ks)
    if most > n:
        raise ValueError(f"k = {most} needs at least k samples, but n = {n}")
    won = [0.0] * len(ks)
    for t in range(1, min(c, most) + 1):
        rivals = [m for m in wrong if m >= t]
        free = n - c - sum(rivals)  # no answer, or wrong ones too rare to reach t: any number goes
        ways = torch.zeros(len(rivals) + 1, most + 1, dtype=torch.float64)
        ways[0] = torch.tensor([float(math.comb(free, x)) for x in range(most + 1)])
        for m in rivals:
            wider = torch.zeros_like(ways)
            for votes in range(min(t, most + 1)):
                wider[:, votes:] += math.comb(m, votes) * ways[:, : most + 1 - votes]
            wider[1:, t:] += math.comb(m, t) * ways[:-1, : most + 1 - t]
            ways = wider
        lots = 1 / torch.arange(1, len(rivals) + 2, dtype=torch.float64)
        others = (lots @ ways).tolist()
        for i, k in enumerate(ks):
            won[i] += math.comb(c, t) * others[k - t] if k >= t else 0.0
    return [x / math.comb(n, k) for x, k in zip(won, ks, strict=True)]


def verdict(change: Mapping[str, Interval]) -> str:
    """One plain sentence: "pass@8 rose, pass@1 fell"."""

    def word(x: Interval) -> str:
        assert x["low"] is not None and x["high"] is not None
        if x["low"] > 0:
            return "rose"
        return "fell" if x["high"] < 0 else "did not change beyond its interval"

    names = sorted(change, key=lambda name: int(name.removeprefix("pass@")), reverse=True)
    return ", ".join(
        f"{name} {word(change[name])}" for name in dict.fromkeys((names[0], names[-1]))
    )
