"""Problems gained and lost in a change, by difficulty, where interference shows."""

from collections.abc import Sequence
from typing import Any

import torch

from eval.records import Record
from eval.scores.intervals import mcnemar

LEVELS = ("easy", "medium", "hard")
EASY, HARD = 0.80, 0.15  # easy above the first success rate, hard below the second


def level_of(rate: float) -> str:
    return "easy" if rate > EASY else "hard" if rate < HARD else "medium"


def difficulty(before: Record) -> str:
    """Return the level by the true rate or, if it is unknown, by every second answer.

    With a single answer the level is unknown. A problem that looked hard by chance does better the
    next time even without training. So a change counts from the other half of the answers, which
    did not choose the level: see `counted`.
    """
    if "p" in before:
        return level_of(before["p"])
    choosing = before["verdicts"][::2]
    if before["n"] < 2:
        return "unknown"
    return level_of(sum(x is True for x in choosing) / len(choosing))


def counted(record: Record, by_halves: bool) -> float:
    """Return the success rate of all answers, or of those that do not choose the level."""
    if not by_halves:
        return record["c"] / record["n"]
    verdicts = record["verdicts"][1::2]
    return sum(x is True for x in verdicts) / len(verdicts)


def by_difficulty(before: Sequence[Record], after: Sequence[Record]) -> list[dict[str, Any]]:
    """Return success rates and problems gained and lost, overall and by level before the change.

    p is McNemar's exact p-value of as many gains as losses. A problem counts as solved if more than
    half of its answers are right. The number of answers must be the same before and after, because
    chance would otherwise favour one direction.
    """
    rows = []
    for level in ("all", *LEVELS):
        pairs = [
            tuple(counted(x, level != "all" and "p" not in old) for x in (old, new))
            for old, new in zip(before, after, strict=True)
            if level in ("all", difficulty(old))
        ]
        if not pairs:
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
    """Return [from][to] counts of moves between easy, medium, hard; by true rates if known."""
    table = [[0] * len(LEVELS) for _ in LEVELS]
    for old, new in zip(before, after, strict=True):
        start, end = (
            LEVELS.index(level_of(x["p"] if "p" in x else x["c"] / x["n"])) for x in (old, new)
        )
        table[start][end] += 1
    return table
