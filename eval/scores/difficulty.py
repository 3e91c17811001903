"""Which problems a change gained and lost, by how hard they were: where interference shows."""

from collections.abc import Sequence
from typing import Any

import torch

from eval.records import Record
from eval.scores.intervals import mcnemar

LEVELS = ("easy", "medium", "hard")


EASY, HARD = 0.80, 0.15  # a success rate above, below


def level_of(rate: float) -> str:
    return "easy" if rate > EASY else "hard" if rate < HARD else "medium"


def difficulty(before: Record) -> str:
    """By the true rate, where it is known; else by every other answer, and unknown by one alone.

    Chosen by its own luck, a problem that looked hard does better the next time, whatever was done
    in between. So what a change is held against are the answers that did not choose, `counted`.
    """
    if "p" in before:
        return level_of(before["p"])
    chooses = before["verdicts"][::2]
    if before["n"] < 2:
        return "unknown"
    return level_of(sum(x is True for x in chooses) / len(chooses))


def counted(record: Record, by_halves: bool) -> float:
    """The success rate, of all answers or of those that do not choose."""
    if not by_halves:
        return record["c"] / record["n"]
    counts = record["verdicts"][1::2]
    return sum(x is True for x in counts) / len(counts)


def by_difficulty(before: Sequence[Record], after: Sequence[Record]) -> list[dict[str, Any]]:
    """Success rates and problems gained and lost, of all and of those easy, medium, hard before.

    p is McNemar's exact one, of as many gains as losses.
    A problem counts as solved if more than half of its answers are right: of equally many answers
    before and after, or chance alone would tip more problems one way.
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
    """[from][to] how many problems moved between easy, medium and hard; by true rates if known."""
    table = [[0] * len(LEVELS) for _ in LEVELS]
    for old, new in zip(before, after, strict=True):
        start, end = (
            LEVELS.index(level_of(x["p"] if "p" in x else x["c"] / x["n"])) for x in (old, new)
        )
        table[start][end] += 1
    return table
