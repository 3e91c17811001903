"""The distance to the curve of fixed mixtures: by hand, and its coverage by simulation."""

import math

import pytest
import torch

from eval.report.curve import distance, height
from surgery.objectives import rho

SIMULATIONS = 4_000
ANSWERS, K = 32, 8
SCORES = torch.stack([rho(ANSWERS, torch.arange(ANSWERS + 1), k) for k in (1, K)])
MIXTURES = [1.0, 0.7, 0.45, 0.25]  # how far each goes the way of pass@k alone
RULE = 0.6
ON, ABOVE, BELOW = 0.19, 0.8, -0.4  # by as much the rule lifts the logits of hard problems
SHIFT, EACH = 0.1, 0.3  # of a seed: the same for all easy, or hard, problems; another for each


def logits(problems, rivals, lift, generator):
    """Of each problem's success after each run [run, problem], the rule's last; and who is hard.

    Hard problems gain and easy ones lose by pass@k, each at its own pace. The rule and every curve
    have their own way with each problem too; `lift` is what the rule gives the hard ones on top.
    """

    def normal(*shape):
        return torch.randn(*shape, problems, generator=generator, dtype=torch.float64)

    hard = torch.rand(problems, generator=generator) < 0.3
    before = torch.where(hard, -2.8 + 0.8 * normal(), 1.6 + 0.6 * normal())
    way = torch.tensor(MIXTURES * rivals + [RULE], dtype=torch.float64)[:, None]
    change = torch.where(hard, 2.6 * way, 0.4 - 2.2 * way) * (1 + 0.2 * normal())
    own = torch.cat([0.2 * normal(rivals).repeat_interleave(len(MIXTURES), 0), 0.8 * normal(1)])
    found = before + change + own
    found[-1] += lift * hard
    return found, hard


def curves_of(ends, rivals):
    return list(ends[:-1].split(len(ends[:-1]) // rivals))


def truth(rivals, lift):
    """The distance of the expected ends, over many problems and the normal spread of seeds."""
    generator = torch.Generator().manual_seed(1)
    success, _ = logits(100_000, rivals, lift, generator)
    ends = 0.0
    for level in (torch.arange(8, dtype=torch.float64) + 0.5) / 8:
        seed = math.hypot(SHIFT, EACH) * 1.05 * torch.special.ndtri(level)  # 1.05: to unit variance
        p = torch.sigmoid(success + seed)
        ends += torch.stack([p.mean(1), (1 - (1 - p) ** K).mean(1)], 1) / 8
    pass_k = float(ends[-1, 1])
    return pass_k - max(float(height(x, ends[-1, 0])) for x in curves_of(ends, rivals))


def sampled(problems, seeds, rivals, lift, generator):
    """Ends [run, seed, metric, problem] of runs that were evaluated on the same problems."""
    success, hard = logits(problems, rivals, lift, generator)
    runs = len(success)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    # runs of one seed saw the same data: half of the variance is theirs together
    shift = SHIFT * (normal(1, seeds, 2) + normal(runs, seeds, 2)) / math.sqrt(2)
    seed = torch.where(hard, shift[..., :1], shift[..., 1:]) + EACH * normal(runs, seeds, problems)
    p = torch.sigmoid(success[:, None] + seed)
    right = torch.binomial(torch.full_like(p, ANSWERS), p, generator).long()
    return SCORES[:, right].permute(1, 2, 0, 3)


def coverage(problems, seeds, rivals=1, lift=ON, simulations=SIMULATIONS):
    """Of the interval over seeds and problems, and of the jackknife over seeds alone."""
    generator, true = torch.Generator().manual_seed(0), truth(rivals, lift)
    held = {False: 0, True: 0}
    for _ in range(simulations):
        ends = sampled(problems, seeds, rivals, lift, generator)
        for only_seeds in held:
            known = ends.mean(-1, keepdim=True) if only_seeds else ends
            found = distance(known[-1], curves_of(known, rivals), exact=only_seeds)
            held[only_seeds] += found["low"] <= true <= found["high"]
    return held[False] / simulations, held[True] / simulations


def test_height_by_hand():
    def at(points, pass_1):
        return float(height(torch.tensor(points), torch.tensor(pass_1)))

    line = [(0.5, 1.0), (0.7, 0.9), (0.8, 0.5)]
    assert at(line, 0.6) == pytest.approx(0.95) and at(line, 0.75) == pytest.approx(0.7)
    assert at(line, 0.4) == 1.0 and at(line, 0.9) == 0.5  # level beyond the ends
    assert at([(0.5, 0.9), (0.7, 0.9), (0.5, 0.7)], 0.6) == pytest.approx(0.9)  # the higher
    assert at([(0.5, 0.9), (0.5, 0.7)], 0.5) == pytest.approx(0.9)  # upright


@pytest.mark.parametrize("lift", [ON, ABOVE])
def test_sampled_values_share_their_problems(lift):
    """Of 200 intervals that hold the truth in 93 to 97 % of the cases, between 173 and 200 do, but
    for one time in 1,000. The jackknife over seeds alone holds it too rarely to pass.
    """
    both, only_seeds = coverage(300, 5, lift=lift, simulations=200)
    assert both >= 173 / 200 > only_seeds


@pytest.mark.slow
@pytest.mark.parametrize(("rivals", "lift"), [(1, ON), (1, ABOVE), (1, BELOW), (2, ON)])
@pytest.mark.parametrize("problems", [300, 500])
@pytest.mark.parametrize("seeds", [3, 5])
def test_coverage_of_sampled_distances(problems, seeds, rivals, lift):
    both, _ = coverage(problems, seeds, rivals, lift)
    assert 0.93 <= both <= 0.97


@pytest.mark.parametrize("seeds", [3, 5])
def test_coverage_of_true_distances(seeds):
    """Seeds alone differ, by .006 in pass@1 and .003 in pass@8; mixtures lie .03 and more apart."""
    generator = torch.Generator().manual_seed(0)
    curve = torch.tensor([(0.667, 0.991), (0.732, 0.984), (0.762, 0.977), (0.792, 0.966)]).double()
    rule = torch.tensor([0.77, float(height(curve, torch.tensor(0.77))) - 0.01])
    held = 0
    for _ in range(2_000):
        noise = torch.randn(5, seeds, 2, 1, generator=generator, dtype=torch.float64)
        ends = torch.cat([curve, rule[None]])[:, None, :, None] + noise * torch.tensor(
            [[0.006], [0.003]]
        )
        found = distance(ends[-1], [ends[:-1]], exact=True)
        held += found["low"] <= -0.01 <= found["high"]
    assert 0.93 <= held / 2_000 <= 0.97
