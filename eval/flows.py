"""Which problems a change gained and lost, by how hard they were: where interference shows."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from eval.intervals import mcnemar

Record = Mapping[str, Any]
LEVELS = ("easy", "medium", "hard")
EASY, HARD = 0.80, 0.15  # a success rate above, below


def level_of(rate: float) -> str:
    return "easy" if rate > EASY else "hard" if rate < HARD else "medium"


def halves(before: Record) -> tuple[str, float]:
    """How hard a problem was, and the success rate that a later one may be held against.

    Chosen by its own luck, a problem that looked hard does better the next time, whatever was done
    in between. So one half of the answers says how hard it was, the other half how often it was
    solved. Where the true rate p is known it says the former, and all answers the latter. With one
    answer there is no half to choose by: unknown.
    """
    if "p" in before:
        return level_of(before["p"]), before["c"] / before["n"]
    right = [verdict is True for verdict in before["verdicts"]]
    if len(right) < 2:
        return "unknown", before["c"] / before["n"]
    chooses, counts = right[::2], right[1::2]
    return level_of(sum(chooses) / len(chooses)), sum(counts) / len(counts)


def by_difficulty(before: Sequence[Record], after: Sequence[Record]) -> list[dict[str, Any]]:
    """For all problems, and for the easy, medium and hard ones of before: how many, the success
    rate before and after, and how many were gained and lost, with McNemar's exact p.

    A problem counts as solved if more than half of its answers are right.
    """
    chosen = [(*halves(old), new["c"] / new["n"]) for old, new in zip(before, after, strict=True)]
    rows = []
    for level in ("all", *LEVELS, "unknown"):
        pairs = [(old, new) for name, old, new in chosen if level in ("all", name)]
        if not pairs or (level == "unknown" and len(pairs) == len(chosen)):
            continue
        gained = sum(old <= 0.5 < new for old, new in pairs)
        lost = sum(new <= 0.5 < old for old, new in pairs)
        old_rates, new_rates = torch.tensor(pairs, dtype=torch.float64).mean(0).tolist()
        rows.append(
            {
                "difficulty": level,
                "problems": len(pairs),
                "before": old_rates,
                "after": new_rates,
                "gained": gained,
                "lost": lost,
                "p": mcnemar(gained, lost),
            }
        )
    return rows


def moves(before: Sequence[Record], after: Sequence[Record]) -> list[list[int]]:
    """[from][to] how many problems moved between easy, medium and hard; by true rates if known."""
    table = [[0] * len(LEVELS) for _ in LEVELS]
    for old, new in zip(before, after, strict=True):
        start, end = (
            LEVELS.index(level_of(x["p"] if "p" in x else x["c"] / x["n"])) for x in (old, new)
        )
        table[start][end] += 1
    return table
