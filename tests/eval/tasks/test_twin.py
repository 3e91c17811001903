import math

import pytest
import torch

from eval.rollout.rollout import Decoding
from eval.rollout.sample import sample
from eval.tasks.twin import Twin
from eval.verify.verifier import Verifier
from surgery.objectives import rho


def test_population(twin):
    assert len(twin.population) == 2 * 630
    assert abs(float(twin.shares.sum()) - 1) < 1e-12
    hard = torch.tensor([x.group == "hard" for x in twin.population])
    assert abs(float(twin.shares[hard].sum()) - 0.3) < 1e-12
    pairs = list(zip(twin.population[::2], twin.population[1::2], strict=True))
    assert all(e.prompt == h.prompt and e.gold != h.gold for e, h in pairs)


def test_the_cue_follows_its_normal_law():
    s = torch.randn(400_000, generator=torch.Generator().manual_seed(0)).double()
    for row, mean in ((0, -1.0), (1, 1.0)):
        cue = (2 * (s + mean + 2.5)).floor().clamp(0, 9).long()
        seen = torch.bincount(cue, minlength=10) / len(s)
        assert torch.allclose(seen.double(), Twin(delta=2.0).cue_given_group[row], atol=0.003)


def test_base_policy(twin, base):
    values = twin.success(base).pass_at([1, 8])
    assert abs(values["pass@1"] - 0.65) < 0.02
    assert abs(values["pass@8"] - 0.886) < 0.02


def test_exact_values_agree_with_samples(twin, base):
    exact = twin.success(base)
    problems = twin.evaluation(400)
    rollout = sample(base, [x.prompt for x in problems], 32, Decoding(4), seed=0)
    verdicts = Verifier("exact")(rollout.texts, [x.gold for x in problems for _ in range(32)])
    correct = torch.tensor(verdicts).view(-1, 32).sum(1)
    p = torch.tensor([exact.of(x) for x in problems], dtype=torch.float64)
    for k in (1, 4, 8):
        sampled, true = rho(32, correct, k), 1 - (1 - p) ** k
        gap = sampled - true  # given the problems, each has mean 0
        assert abs(float(gap.mean())) < 4 * float(gap.std()) / len(problems) ** 0.5


def test_oracle_frontier(twin):
    """Values of the frontier at delta = 2, to their printed digits."""
    points = twin.frontier(8, 2001)
    for j_1, j_8 in ((0.58, 0.998), (0.73, 0.993), (0.79, 0.982), (0.83, 0.958), (0.86, 0.861)):
        nearest = min(points, key=lambda x: abs(x[0] - j_1) + abs(x[1] - j_8))
        assert abs(nearest[0] - j_1) < 0.006 and abs(nearest[1] - j_8) < 0.003


def test_no_policy_of_the_cue_beats_the_frontier(twin):
    easy, hard = twin.cue_and_group
    base = (0.65, 0.886)
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        q = torch.rand(10, generator=generator, dtype=torch.float64)
        j_1 = float(easy @ q + hard @ (1 - q))
        j_8 = float(easy @ (1 - (1 - q) ** 8) + hard @ (1 - q**8))
        share = twin.frontier_share(base, (j_1, j_8), 8)
        assert share is None or share <= 1 + 1e-9


def test_frontier_share(twin):
    base = (0.65, 0.886)
    on_it = twin.frontier(8, 101)[30]
    assert abs(twin.frontier_share(base, on_it, 8) - 1) < 1e-3
    half = tuple((a + b) / 2 for a, b in zip(base, on_it, strict=True))
    assert abs(twin.frontier_share(base, half, 8) - 0.5) < 1e-3
    assert twin.frontier_share(base, (0.64, 0.95), 8) is None
    assert twin.frontier_share(base, base, 8) is None


def test_streams_are_pure_functions(twin):
    assert twin.training(3, 7, 20) == twin.training(3, 7, 20) != twin.training(3, 8, 20)
    assert twin.evaluation(50) == twin.evaluation(100)[:50]
    assert len({x.id for x in twin.evaluation(500)}) == 500


def test_rewards_accept_only_the_canonical_answer(twin):
    verifier = Verifier(twin.verifier)
    for answer in ("07", "3+4", "7.0", "7?", "=7", "7<pad>", "+7", ""):
        assert verifier([answer], ["7"]) == [False], answer
    assert verifier(["7"], ["7"]) == [True]


def test_two_runs_may_want_the_base_at_once(tmp_path, monkeypatch):
    from concurrent.futures import ThreadPoolExecutor

    from eval.tasks import twin_base

    monkeypatch.setenv("PASSK_SURGERY_CACHE", str(tmp_path))
    recipe = twin_base.TwinRecipe(steps=2, batch=4)
    with ThreadPoolExecutor(2) as pool:
        folders = set(pool.map(twin_base.base_folder, [recipe, recipe]))
    assert len(folders) == 1 and [x.name for x in tmp_path.iterdir()] == [
        f.split("/")[-1] for f in folders
    ]


def test_where_the_entropy_bonus_ends(twin):
    """pi ~ exp(P(right | cue)/c) maximises J_1 + c H over policies of the cue.

    The values are those of configs/README.md.

    Of the 23 tokens that do not end a text, up to four make 292,561 completions: they share what
    the two answers leave.
    """
    joint = twin.cue_and_group
    right = joint / joint.sum(0)
    others = sum(23**length for length in range(5)) - 2

    def optimum(c, others):
        nonsense = torch.full((1, right.shape[1]), math.log(others) if others else -math.inf)
        return torch.cat([right / c, nonsense]).softmax(0)

    def value(q, c):
        entropy = -(q * q.log()).sum(0) + q[2] * math.log(others)
        return joint.sum(0) @ ((q[:2] * right).sum(0) + c * entropy)

    def ends(q):
        miss = 1 - q[:2]
        return float((joint * q[:2]).sum()), float((joint * (1 - miss**8)).sum())

    best = optimum(0.05, others)
    for seed in range(20):
        step = torch.randn(best.shape, generator=torch.Generator().manual_seed(seed)).double()
        nearby = (best.log() + 0.01 * step).softmax(0)
        assert value(nearby, 0.05) < value(best, 0.05)
    assert ends(best) == pytest.approx((0.788, 0.861), abs=5e-4)
    assert ends(optimum(0.1, others)) == pytest.approx((0.031, 0.208), abs=5e-4)
    assert ends(optimum(0.15, others)) == pytest.approx((0.001, 0.011), abs=5e-4)
    # over the two answers alone
    assert ends(optimum(0.3, 0)) == pytest.approx((0.808, 0.966), abs=5e-4)
