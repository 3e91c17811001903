import itertools
import random

import pytest
import torch

from eval.report.tables import outcome
from eval.scores.passk import (
    change,
    changes,
    ladder,
    majority,
    majority_scores,
    moved,
    scores,
    standard_error,
    too_few,
    verdict,
    which_too_few,
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
        majority(3, 1, (2,), 4)


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
            assert majority(n, right, wrong, k) == pytest.approx(won / len(subsets)), answers


def test_majority_of_one_is_pass_at_1():
    made = [{**r, "wrong": {"x": (8 - r["c"]) // 2}} for r in records([0, 3, 8, 5])]
    assert majority_scores(made, [1])["maj@1"] == pytest.approx(scores(made, [1])["pass@1"])


def test_standard_error_is_over_problems():
    """Eight answers to one problem are not eight problems."""
    assert standard_error(records([0, 8, 0, 8])) == pytest.approx((1 / 3) ** 0.5 / 2)


@pytest.mark.parametrize("n", [128, 256, 2048])
def test_majority_of_many_answers(n):
    """Against draws: binomial coefficients of this size overflow."""
    c, wrong, k = n // 3, (n // 4, n // 5, 1), n // 2
    none = n - c - sum(wrong)
    sizes = torch.tensor([c, *wrong, none])
    names = torch.arange(5).repeat_interleave(sizes)
    generator = torch.Generator().manual_seed(0)
    won = 0.0
    for _ in range(2_000):
        votes = torch.bincount(names[torch.randperm(n, generator=generator)[:k]], minlength=5)[:4]
        won += float(votes[0] == votes.max()) / int((votes == votes.max()).sum())
    assert majority(n, c, wrong, k) == pytest.approx(won / 2_000, abs=0.03)
    assert majority(n, c, wrong, n) == 1 and majority(n, c, wrong, 1) == pytest.approx(c / n)


def test_too_few_solved_or_failed():
    few, enough = torch.zeros(100).double(), torch.zeros(100).double()
    few[:4], enough[:5] = 1, 1
    assert too_few(few) and too_few(1 - few) and too_few(few / 8)
    assert not too_few(enough) and not too_few(1 - enough) and not too_few(enough / 8)
    some = records([8] * 4 + [0] * 96)
    assert which_too_few(some, [1, 8]) == ["pass@1", "pass@8"]
    assert which_too_few([*some, *records([8])], [1, 8]) == []


def test_pairing_removes_the_spread_between_problems():
    generator = torch.Generator().manual_seed(0)
    before = torch.randint(0, 8, (200,), generator=generator).tolist()
    after = [c + i % 2 for i, c in enumerate(before)]
    change = changes(records(before), records(after), [1])["pass@1"]
    assert change["value"] == 1 / 16 and 0.05 < change["low"] < change["high"] < 0.075
    same = changes(records(before), records(before), [1])
    assert same["pass@1"]["low"] is None and verdict(same) == "pass@1: cannot tell"
    assert verdict({"pass@1": change}) == "pass@1 rose"
    with pytest.raises(ValueError, match="same problems"):
        changes(records(before), records(after[:-1]), [1])


@pytest.mark.parametrize(("changed", "word"), [(4, "cannot tell"), (5, "rose")])
def test_a_change_of_few_problems_has_no_interval(changed, word):
    """Four changes for the better have a chance of 1 in 16 where nothing has changed."""
    before = [{"id": str(i), "n": 8, "c": 0} for i in range(40)]
    after = [x | {"c": 4 * (i < changed)} for i, x in enumerate(before)]
    estimate = change(before, after, 1).interval
    assert estimate["value"] == pytest.approx(changed / 80)
    assert (estimate["low"] is None) == (changed < 5) and moved(estimate) == word


def test_a_verdict_has_the_exact_change_beside_it():
    change = {
        "pass@1": {"value": 0.01, "low": -0.01, "high": 0.03},
        "pass@8": {"value": 0.1, "low": 0.08, "high": 0.12},
    }
    assert verdict(change) == "pass@8 rose, pass@1: cannot tell"
    exact = {"pass@1": 0.011, "pass@8": 0.107}
    assert verdict(change, exact) == (
        "pass@8 rose (exact: +0.107), pass@1: cannot tell (exact: +0.011)"
    )


def test_the_outcome_of_a_run_says_what_it_is_about():
    ends = {"value": 0.01, "low": -0.01, "high": 0.03}
    summary = {"change": {"pass@1": ends}}
    assert outcome(summary) == "pass@1: cannot tell, from the sampled answers"
    more = {
        "difficulty": [{"difficulty": "all", "problems": 500}],
        "exact": {"before": {"pass@1": 0.6}, "after": {"pass@1": 0.611}},
    }
    assert outcome(summary | more) == (
        "pass@1: cannot tell (exact: +0.011), from the sampled answers to 500 problems"
    )
