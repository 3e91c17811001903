"""How sure a diagnosis is: coverage by simulation, the bootstrap, cosines, changes of sign."""

import math

import pytest
import torch

from eval.diagnosis.analysis import analyse, cosines, interval, resampled, sign_change
from surgery.interference import EVERYTHING, PASS_1, FeatureSums, influence, product
from surgery.objectives import pass_at_k_weight

N = 12


def test_sign_changes():
    assert sign_change([1, 2, 4], [3.0, 1.0, -1.0]) == 3
    assert sign_change([1, 2], [-1.0, 1.0]) == 1 and sign_change([1, 2], [1.0, 2.0]) is None


EASY_G, HARD_G = torch.tensor([1.0, 0.2, 0.0]).double(), torch.tensor([-0.6, 0.8, 0.0]).double()


def two_families(prompts, n, seed):
    """Prompts of p = .88 and p = .12 under a logistic policy: u = (f - p) x_i, so grad p = p (1-p)
    x_i.
    """
    generator = torch.Generator().manual_seed(seed)
    easy = torch.rand(prompts, generator=generator) < 0.7
    p = torch.where(easy, 0.88, 0.12).double()
    x = torch.where(easy[:, None], EASY_G, HARD_G)
    c = (torch.rand(prompts, n, generator=generator) < p[:, None]).sum(1)
    sums = torch.stack([c * (1 - p), -(n - c) * p], 1)[..., None] * x[:, None]
    return FeatureSums(c, n, sums)


def exact_product(k):
    def gradient(m):
        w = pass_at_k_weight(torch.tensor([0.88, 0.12]), m) * 0.88 * 0.12
        return 0.7 * w[0] * EASY_G + 0.3 * w[1] * HARD_G

    return float(gradient(k) @ gradient(1))


def test_intervals_cover_and_products_are_unbiased():
    """By the unbiased estimator, over 200 draws of prompts and answers; 88 % is three standard
    errors below 95 %.
    """
    truth, held, values = exact_product(4), 0, []
    for seed in range(200):
        phi = influence(two_families(150, 8, seed), ("loo", 4), PASS_1, EVERYTHING)
        found = interval(phi)
        values.append(found["value"])
        held += found["low"] < truth < found["high"]
    spread = torch.tensor(values)
    assert abs(float(spread.mean()) - truth) < 4 * float(spread.std()) / math.sqrt(200)
    assert 176 <= held < 200  # so wide that nothing lies outside would be no use


def test_a_prompt_drawn_twice_does_not_meet_itself():
    """Against the bootstrap that forms all pairs anew, but for those of a prompt with its copy;
    with those pairs it is pushed upwards by the self-term.
    """
    x, level = two_families(40, 8, 3), ("loo", 4)
    g_a, g_b = x.gradients(level), x.gradients(PASS_1)
    table = g_a @ g_b.T
    generator = torch.Generator().manual_seed(1)
    ours = resampled(influence(x, level, PASS_1, EVERYTHING))
    drawn = [torch.randint(40, (40,), generator=generator).bincount(minlength=40) for _ in ours]
    m = torch.stack(drawn).double()
    whole, copies = ((m @ table) * m).sum(1), (m * m) @ table.diagonal()
    without = (whole - copies) / (40**2 - (m * m).sum(1))
    met = (whole - m @ table.diagonal()) / (40 * 39)
    value, error = product(x, level, PASS_1, EVERYTHING), float(without.std()) / math.sqrt(len(m))
    assert abs(float(ours.mean()) - value) < 4 * error
    assert abs(float(without.mean()) - value) < 4 * error
    assert float(met.mean()) - value > 10 * error
    ends = torch.tensor([0.025, 0.975]).double()
    width = float(without.quantile(ends[1]) - without.quantile(ends[0]))
    assert torch.allclose(ours.quantile(ends), without.quantile(ends), atol=0.12 * width)


def test_cosines():
    """Known directions, and nothing where an unbiased square is negative."""
    x = two_families(4000, 8, 0)
    found = cosines(x, [PASS_1, ("loo", 8)], EVERYTHING)
    squares = [product(x, level, level, EVERYTHING) for level in (PASS_1, ("loo", 8))]
    by_hand = product(x, ("loo", 8), PASS_1, EVERYTHING) / math.sqrt(squares[0] * squares[1])
    assert found["value"][0][1] == pytest.approx(by_hand)
    assert found["low"][0][1] <= found["value"][0][1] <= found["high"][0][1]
    one, other = torch.tensor([[1.0, 0.0], [-1.0, 0.0]]).double()
    sums = torch.stack([one, -one, other, -other]).view(2, 2, 2)
    opposed = FeatureSums(torch.tensor([6, 6]), N, sums)  # their product is all that is left
    assert cosines(opposed, [PASS_1], EVERYTHING)["value"] == [[None]]


def test_analysis_knows_when_nothing_conflicts():
    """One family of prompts: every product is positive, and no k changes the sign."""
    generator = torch.Generator().manual_seed(0)
    c = torch.randint(0, 9, (200,), generator=generator)
    sums = torch.stack([c * 0.5, -(8 - c) * 0.5], 1)[..., None].double() * EASY_G
    records = [
        {"id": str(i), "prompt": f"{i}", "gold": "", "c": int(x), "n": 8} for i, x in enumerate(c)
    ]
    found = analyse({"last_layer": FeatureSums(c, 8, sums)}, records, 8)
    rows = found["measures"]["last_layer"]["groups"]
    assert rows[0]["plugin"]["value"] > 0 and all(row["plugin"]["value"] >= 0 for row in rows)
    assert found["measures"]["last_layer"]["against_k"]["sign_change"]["value"] is None
    assert found["pairs"] == [] and found["proxy"] is None
