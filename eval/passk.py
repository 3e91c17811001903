"""Unbiased pass@k over problems with 95 % bootstrap intervals, and the paired change between two
evaluations.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import torch
from torch import Tensor

from surgery.objectives import rho

RESAMPLES = 2_000


class Interval(TypedDict):
    value: float
    low: float | None
    high: float | None


def ladder(k: int) -> list[int]:
    """1, 2, 4, ... up to k, and k itself."""
    return [*(2**i for i in range(k.bit_length()) if 2**i < k), k]


def problem_scores(records: Sequence[Mapping[str, Any]], k: int) -> Tensor:
    """rho(n, c, k) of each problem; every problem needs n >= k samples."""
    return torch.stack([rho(r["n"], torch.tensor(r["c"]), k) for r in records])


def interval(scores: Tensor) -> Interval:
    """Mean over problems with a percentile bootstrap over problems, of a fixed seed so that it is
    repeatable.
    """
    generator = torch.Generator().manual_seed(0)
    picks = torch.randint(len(scores), (RESAMPLES, len(scores)), generator=generator)
    low, high = (
        scores[picks].mean(1).quantile(torch.tensor([0.025, 0.975], dtype=scores.dtype)).tolist()
    )
    return {"value": float(scores.mean()), "low": low, "high": high}


def scores(records: Sequence[Mapping[str, Any]], ks: Sequence[int]) -> dict[str, Interval]:
    return {f"pass@{k}": interval(problem_scores(records, k)) for k in ks}


def changes(
    before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]], ks: Sequence[int]
):
    """after - before on the same problems: pairing removes the spread between problems from the
    interval.
    """
    if [r["id"] for r in before] != [r["id"] for r in after]:
        raise ValueError("a paired change needs the same problems in the same order")
    return {f"pass@{k}": interval(problem_scores(after, k) - problem_scores(before, k)) for k in ks}


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
