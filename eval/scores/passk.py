"""Unbiased pass@k, majority votes, and paired changes between two evaluations.

The scores use n and c of a record; majority votes also use the count of every `wrong` answer.
"""

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import conv1d

from eval.records import Record
from eval.scores.intervals import Estimate, Interval, bca, unknown
from surgery.objectives import rho

FEW = 5


def ladder(k: int) -> list[int]:
    """Return 1, 2, 4, ... up to k, and k itself."""
    return [*(2**i for i in range(k.bit_length()) if 2**i < k), k]


def problem_scores(records: Sequence[Record], k: int) -> Tensor:
    """Return rho(n, c, k) of each problem; every problem needs n >= k samples."""
    return torch.stack([rho(r["n"], torch.tensor(r["c"]), k) for r in records])


def too_few(scores: Tensor) -> bool:
    """Return whether fewer than five problems contain all successes, or all failures.

    No method's 95 % interval then has its nominal coverage: with two of 100 problems solvable it
    covers about 85 %.
    """
    return min(_effective(scores), _effective(1 - scores)) < FEW


def _effective(x: Tensor) -> float:
    """Return (sum x)^2 / sum x^2, for values of 0 and 1 the number of ones."""
    squares = float(x.square().sum())
    return float(x.sum()) ** 2 / squares if squares > 0 else 0.0


def which_too_few(records: Sequence[Record], ks: Sequence[int]) -> list[str]:
    """Return the names of the scores that are `too_few`."""
    return [f"pass@{k}" for k in ks if too_few(problem_scores(records, k))]


def interval(scores: Tensor) -> Interval:
    """Return the mean with its BCa interval over problems.

    If all scores are 0, or all are 1, the truth differs by 1 - 0.025^(1/N) at most, with N problems
    (Clopper and Pearson 1934).
    """
    mean = bca(scores).interval
    room = 1 - 0.025 ** (1 / len(scores))
    if float(scores.max()) == 0:
        return {**mean, "low": 0.0, "high": room}
    if float(scores.min()) == 1:
        return {**mean, "low": 1 - room, "high": 1.0}
    return mean


def scores(records: Sequence[Record], ks: Sequence[int]) -> dict[str, Interval]:
    return {f"pass@{k}": interval(problem_scores(records, k)) for k in ks}


def standard_error(records: Sequence[Record]) -> float | None:
    """Return the error of pass@1 over problems; answers to one problem are not independent."""
    if len(records) < 2:
        return None
    return float(problem_scores(records, 1).std() / math.sqrt(len(records)))


def change(before: Sequence[Record], after: Sequence[Record], k: int) -> Estimate:
    """Return after - before, paired: its interval excludes the spread between problems.

    If fewer than five problems make the change, no interval is given: even if all of them changed
    for the better, a sign test could not exclude chance.
    """
    if [r["id"] for r in before] != [r["id"] for r in after]:
        raise ValueError("a paired change needs the same problems in the same order")
    changes = problem_scores(after, k) - problem_scores(before, k)
    return bca(changes) if _effective(changes.abs()) >= FEW else unknown(float(changes.mean()))


def changes(
    before: Sequence[Record], after: Sequence[Record], ks: Sequence[int]
) -> dict[str, Interval]:
    return {f"pass@{k}": change(before, after, k).interval for k in ks}


def majority_scores(records: Sequence[Record], ks: Sequence[int]) -> dict[str, Interval]:
    """Return maj@k over problems, from each record's count of every `wrong` answer."""

    def score(record: Record, k: int) -> float:
        return majority(record["n"], record["c"], tuple(sorted(record["wrong"].values())), k)

    return {
        f"maj@{k}": interval(torch.tensor([score(r, k) for r in records], dtype=torch.float64))
        for k in ks
    }


@lru_cache(maxsize=100_000)
def majority(n: int, c: int, wrong: tuple[int, ...], k: int) -> float:
    """Return the probability that the right answer wins the vote of k of the n answers.

    The k are drawn without replacement. c of the n are right, and `wrong` counts each wrong answer;
    the remaining responses gave no answer and have no vote. A tie is broken at random. With t votes
    for the right answer, a product of polynomials counts the other answers: the power of x is the
    number of drawn answers, the power of y the number of wrong answers that also have t votes. A
    draw without replacement equals independent draws with probability k/n, conditioned on k drawn
    answers. This keeps the coefficients within range.
    """
    if k > n:
        raise ValueError(f"k = {k} needs at least k samples, but n = {n}")
    won = 0.0
    for t in range(1, min(c, k) + 1):
        rivals = [m for m in wrong if m >= t]
        free = n - c - sum(rivals)  # no answer, or wrong answers too rare for t votes
        ways = torch.zeros(len(rivals) + 1, k + 1, dtype=torch.float64)
        ways[0, : min(free, k) + 1] = _drawn(free, k / n)[: k + 1]
        for m in rivals:
            chances = _drawn(m, k / n)
            fewer = conv1d(ways[:, None], chances[:t].flip(0)[None, None], padding=t - 1)
            wider = fewer[:, 0, : k + 1]
            wider[1:, t:] += chances[t] * ways[:-1, : k + 1 - t]
            ways = wider
        lots = 1 / torch.arange(1, len(rivals) + 2, dtype=torch.float64)
        won += float(_drawn(c, k / n)[t] * (lots @ ways[:, k - t]))
    return min(1.0, won / float(_drawn(n, k / n)[k]))


@lru_cache(maxsize=10_000)
def _drawn(m: int, chance: float) -> Tensor:
    """Return the probabilities [m + 1] of 0, 1, ... m heads in m throws."""
    x = torch.arange(m + 1, dtype=torch.float64)
    if chance == 1:
        return (x == m).double()
    ways = math.lgamma(m + 1) - torch.lgamma(x + 1) - torch.lgamma(m - x + 1)
    return (ways + x * math.log(chance) + (m - x) * math.log1p(-chance)).exp()


CANNOT_TELL = "cannot tell"


def moved(change: Interval, margin: float = 0.0) -> str:
    """Return whether a value rose or fell by more than the margin, as far as its interval tells."""
    if change["low"] is None or change["high"] is None:
        return CANNOT_TELL
    if change["low"] > margin:
        return "rose"
    return "fell" if change["high"] < -margin else CANNOT_TELL


def verdict(change: Mapping[str, Interval], exact: Mapping[str, float] | None = None) -> str:
    """Return words such as "pass@8 rose, pass@1: cannot tell", each with its exact change."""
    names = sorted(change, key=lambda name: int(name.removeprefix("pass@")), reverse=True)
    words = {name: moved(change[name]) for name in dict.fromkeys((names[0], names[-1]))}
    return ", ".join(
        (f"{name}: {word}" if word == CANNOT_TELL else f"{name} {word}")
        + (f" (exact: {exact[name]:+.3f})" if exact else "")
        for name, word in words.items()
    )
