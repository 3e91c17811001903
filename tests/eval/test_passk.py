import pytest
import torch

from eval.passk import changes, interval, ladder, scores, verdict


def records(counts, n=8):
    return [{"id": str(i), "n": n, "c": c} for i, c in enumerate(counts)]


def test_ladder():
    assert ladder(1) == [1] and ladder(8) == [1, 2, 4, 8] and ladder(10) == [1, 2, 4, 8, 10]


def test_scores_by_hand():
    x = scores(records([0, 8, 4, 4]), [1, 8])
    assert x["pass@1"]["value"] == pytest.approx(0.5)
    assert x["pass@8"]["value"] == pytest.approx(0.75)
    assert x["pass@1"]["low"] <= 0.5 <= x["pass@1"]["high"]


def test_too_large_k_is_refused():
    with pytest.raises(ValueError, match="k = 16"):
        scores(records([1, 2]), [16])


def test_pairing_removes_the_spread_between_problems():
    generator = torch.Generator().manual_seed(0)
    before = torch.randint(0, 8, (200,), generator=generator).tolist()
    after = [c + 1 for c in before]
    change = changes(records(before), records(after), [1])["pass@1"]
    assert change["low"] == pytest.approx(1 / 8) == change["high"]
    assert verdict({"pass@1": change}) == "pass@1 rose"
    with pytest.raises(ValueError, match="same problems"):
        changes(records(before), records(after[:-1]), [1])


def test_interval_has_the_width_of_the_standard_error():
    x = torch.randn(400, generator=torch.Generator().manual_seed(1)).double()
    found = interval(x)
    assert found["high"] - found["low"] == pytest.approx(2 * 1.96 / 20, rel=0.15)
    assert interval(x) == found
