import itertools
import random

import pytest
import torch

from eval.passk import (
    changes,
    ladder,
    majority,
    majority_scores,
    scores,
    standard_error,
    too_few,
    verdict,
)


def records(counts, n=8):
    return [{"id": str(i), "n": n, "c": c} for i, c in enumerate(counts)]


def test_ladder():
    assert ladder(1) == [1] and ladder(8) == [1, 2, 4, 8] and ladder(10) == [1, 2, 4, 8, 10]


def test_scores_by_hand():
    x = scores(records([0, 8, 4, 4]), [1, 8])
    assert x["pass@1"]["value"] == pytest.approx(0.5)
    assert x["pass@8"]["value"] == pytest.approx(0.75)
    assert x["pass@1"]["low"] <= 0.5 <= x["pass@1"]["high"]


def test_pass_at_k_is_the_share_of_subsets_with_a_right_answer():
    for n, c in ((1, 0), (1, 1), (5, 2), (7, 0), (7, 3), (8, 8)):
        for k in range(1, n + 1):
            subsets = list(itertools.combinations([1] * c + [0] * (n - c), k))
            share = sum(map(any, subsets)) / len(subsets)
            assert scores(records([c], n), [k])[f"pass@{k}"]["value"] == pytest.approx(share)


def test_too_large_k_is_refused():
    with pytest.raises(ValueError, match="k = 16"):
        scores(records([1, 2]), [16])
    with pytest.raises(ValueError, match="k = 4"):
        majority(3, 1, (2,), (4,))


def test_majority_is_the_share_of_subsets_that_vote_right():
    """Ties by lot; answers that were not found (None) have no vote."""
    rng = random.Random(0)
    for _ in range(40):
        n = rng.randint(1, 8)
        answers = [rng.choice(["right", "a", "b", "c", None]) for _ in range(n)]
        right = answers.count("right")
        wrong = tuple(sorted(answers.count(x) for x in "abc" if x in answers))
        for k in range(1, n + 1):
            subsets = list(itertools.combinations(answers, k))
            won = 0.0
            for subset in subsets:
                votes = {x: subset.count(x) for x in subset if x is not None}
                most = max(votes.values(), default=0)
                leaders = [x for x, count in votes.items() if count == most]
                won += ("right" in leaders) / max(1, len(leaders))
            assert majority(n, right, wrong, (k,)) == pytest.approx([won / len(subsets)]), answers


def test_majority_of_one_is_pass_at_1():
    made = [{**r, "wrong": {"x": (8 - r["c"]) // 2}} for r in records([0, 3, 8, 5])]
    assert majority_scores(made, [1])["maj@1"]["value"] == scores(made, [1])["pass@1"]["value"]


def test_standard_error_is_over_problems():
    """Eight answers to one problem are not eight problems."""
    assert standard_error(records([0, 8, 0, 8])) == pytest.approx((1 / 3) ** 0.5 / 2)


def test_too_few_solved_or_failed():
    assert too_few(records([0] * 96 + [1] * 4)) and too_few(records([8] * 96 + [7] * 4))
    assert not too_few(records([0] * 95 + [1] * 5))


def test_pairing_removes_the_spread_between_problems():
    generator = torch.Generator().manual_seed(0)
    before = torch.randint(0, 8, (200,), generator=generator).tolist()
    after = [c + 1 for c in before]
    change = changes(records(before), records(after), [1])["pass@1"]
    assert change["low"] == pytest.approx(1 / 8) == change["high"]
    assert verdict({"pass@1": change}) == "pass@1 rose"
    with pytest.raises(ValueError, match="same problems"):
        changes(records(before), records(after[:-1]), [1])
