from collections import Counter

import pytest
import torch

from eval.scores.difficulty import LEVELS, by_difficulty, counted, difficulty, level_of, moves


def record(verdicts, **more):
    return {"id": "x", "n": len(verdicts), "c": sum(verdicts), "verdicts": verdicts, **more}


def test_levels():
    assert [level_of(x) for x in (0.81, 0.8, 0.5, 0.15, 0.14)] == [
        *("easy", "medium", "medium", "medium", "hard")
    ]


def test_one_half_chooses_and_the_other_counts():
    x = record([True, False, True, False])
    assert difficulty(x) == "easy" and counted(x, by_halves=True) == 0.0
    assert difficulty(record([True, False], p=0.1)) == "hard"
    assert difficulty(record([True])) == "unknown"


def test_gained_and_lost_by_hand():
    before = [record([True] * 4), record([False] * 4), record([False] * 4)]
    after = [record([False] * 4), record([True] * 4), record([False] * 4)]
    everything, easy, hard = by_difficulty(before, after)
    assert (everything["gained"], everything["lost"], everything["p"]) == (1, 1, 1)
    assert (easy["difficulty"], easy["gained"], easy["lost"]) == ("easy", 0, 1)
    assert (hard["difficulty"], hard["gained"], hard["problems"]) == ("hard", 1, 2)
    assert moves(before, after) == [[0, 0, 1], [0, 0, 0], [1, 0, 1]]
    (alone,) = by_difficulty([record([True])], [record([False])])
    assert (alone["difficulty"], alone["lost"]) == ("all", 1)


@pytest.mark.parametrize("n", [2, 8, 32])
@pytest.mark.parametrize("p", [0.4, 0.6, None])
def test_nothing_is_gained_or_lost_by_chance(n, p):
    """Before and after are drawn from the same rates: McNemar's p is rarely small, in any row."""
    generator = torch.Generator().manual_seed(0)
    repeats, found = 100, Counter()
    for _ in range(repeats):
        rates = torch.rand(100, generator=generator) if p is None else torch.full((100,), p)
        before, after = (
            [record((x < y).tolist()) for x, y in zip(draws, rates, strict=True)]
            for draws in torch.rand(2, 100, n, generator=generator)
        )
        found.update(x["difficulty"] for x in by_difficulty(before, after) if x["p"] < 0.05)
    assert max(found.values(), default=0) <= 12  # 5 % of 100, and three standard deviations


def test_luck_alone_shows_no_change_of_easy_or_hard_problems():
    """Nothing changes between before and after. Chosen by all their answers, the hard problems
    would seem to improve and the easy ones to fall.
    """
    generator = torch.Generator().manual_seed(0)
    p = torch.rand(4_000, generator=generator)[:, None].expand(-1, 8)
    before, after = (
        [record((row > 0).tolist()) for row in torch.bernoulli(p, generator=generator)]
        for _ in range(2)
    )
    for row in by_difficulty(before, after):
        assert abs(row["after"] - row["before"]) < 0.015, row
    lucky = [i for i, r in enumerate(before) if level_of(r["c"] / r["n"]) == LEVELS[2]]
    drift = sum(after[i]["c"] - before[i]["c"] for i in lucky) / (8 * len(lucky))
    assert drift > 0.04
