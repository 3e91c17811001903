"""The paper's identities on random kernels, its bounds on random instances that meet their
assumptions, and what it gets wrong or leaves loose.
"""

import math

import pytest
import torch

from surgery import theory
from surgery.objectives import pass_at_k_weight

EXACT = dict(rtol=1e-12, atol=1e-12)
K = 7


def random_prompts(instances: int, seed: int, count: int = 6, width: int = 4):
    """Gradients, success rates and shares of random prompts that have nothing in common."""
    draw = torch.Generator().manual_seed(seed)
    g = torch.randn(instances, count, width, generator=draw, dtype=torch.float64)
    p = torch.rand(instances, count, generator=draw, dtype=torch.float64)
    share = torch.rand(instances, count, generator=draw, dtype=torch.float64)
    return g, p, share / share.sum(-1, keepdim=True)


def gradient(g, weights, share):
    """E[w g], summed up directly."""
    return sum((share * weights)[:, i, None] * g[:, i] for i in range(g.shape[1]))


def prompts():
    g, p, share = random_prompts(300, 0)
    w, kernel = pass_at_k_weight(p, K), g @ g.mT
    j_1, j_k = gradient(g, torch.ones_like(w), share), gradient(g, w, share)
    return g, p, share, w, kernel, j_1, j_k


def test_proposition_4_1():
    g, _, share, w, kernel, j_1, j_k = prompts()
    a = theory.agreement(kernel, share)
    torch.testing.assert_close(a, torch.einsum("bnd,bd->bn", g, j_1), **EXACT)
    terms = theory.decomposition(w, a, share)
    torch.testing.assert_close(theory.mean(w * a, share), (j_k * j_1).sum(-1), **EXACT)  # (9)
    torch.testing.assert_close(terms.inner, (j_k * j_1).sum(-1), **EXACT)  # (10)
    torch.testing.assert_close(terms.agreement, j_1.square().sum(-1), **EXACT)
    assert (terms.inner < 0).any() and (terms.inner > 0).any()


def test_proposition_4_1_where_nothing_is_weighted():
    _, _, share, _, kernel, j_1, _ = prompts()
    a = theory.agreement(kernel, share)
    terms = theory.decomposition(torch.full_like(share, 3.0), a, share)
    torch.testing.assert_close(terms.covariance, torch.zeros(300).double(), **EXACT)
    torch.testing.assert_close(terms.inner, 3 * j_1.square().sum(-1), **EXACT)


def test_shifted_distribution():
    g, _, share, w, kernel, j_1, j_k = prompts()
    d_k = theory.shifted(w, share)
    torch.testing.assert_close(d_k.sum(-1), torch.ones(300).double(), **EXACT)
    total = theory.mean(w, share)
    torch.testing.assert_close(total[:, None] * gradient(g, torch.ones_like(w), d_k), j_k, **EXACT)
    inner = total * theory.mean(theory.agreement(kernel, share), d_k)
    torch.testing.assert_close(inner, (j_k * j_1).sum(-1), **EXACT)  # (11)
    assert torch.equal(theory.shifted(torch.zeros_like(w), share), share)


def test_appendix_a():
    g, p, share, w, kernel, j_1, j_k = prompts()
    w_m = pass_at_k_weight(p, 3)
    j_m = gradient(g, w_m, share)
    for weights, gradients in ((torch.ones_like(w), j_1), (w_m, j_m), (w, j_k)):
        inner = theory.inner_product(kernel, w, weights, share)
        torch.testing.assert_close(inner, (j_k * gradients).sum(-1), **EXACT)  # (19)


def test_appendix_b():
    g, p, share, w, kernel, _, j_k = prompts()
    w_m = pass_at_k_weight(p, 3)
    own, cross = theory.interference(kernel, w, w_m, share)
    torch.testing.assert_close(
        own + cross, (j_k * gradient(g, w_m, share)).sum(-1), **EXACT
    )  # (20)
    alone = sum(share[:, i] ** 2 * (w * w_m)[:, i] * g[:, i].square().sum(-1) for i in range(6))
    torch.testing.assert_close(own, alone, **EXACT)
    assert (own >= 0).all() and (own + cross < 0).any()
    friendly = g.abs()  # no pair interferes negatively
    for weights in (torch.ones_like(w), w_m, w):
        own, cross = theory.interference(friendly @ friendly.mT, w, weights, share)
        assert (own >= 0).all() and (cross >= 0).all()
    apart = torch.eye(6, dtype=torch.float64).expand(300, 6, 6)
    assert theory.interference(apart, w, w_m, share)[1].abs().max() < 1e-12


def signed_instances(instances: int, seed: int):
    """Prompts of which those of a < 0 are hard: (a, p, share), whatever delta(theta) comes out."""
    g, p, share = random_prompts(instances, seed)
    pull = torch.zeros(6, 4, dtype=torch.float64)
    pull[:4, 0], pull[4:, 0] = 1.5, -1.5
    a = theory.agreement((g + pull) @ (g + pull).mT, share)
    p = torch.where(a < 0, 0.35 * p, 0.45 + 0.5 * p)
    return a, p, share


def test_corollary_4_4():
    a, p, share = signed_instances(4000, 1)
    for k in (4, 10, 30):
        w = pass_at_k_weight(p, k)
        inner, found = theory.mean(w * a, share), theory.margin(w, a, share)
        assert (inner <= -found.delta + 1e-12).all()
        conflict = found.delta > 0
        assert conflict.sum() >= 500 and (inner[conflict] < 0).all()
        assert (found.low[conflict] > found.high[conflict]).all()
        assert (inner[~conflict] > 0).any()  # with the sign the other way round it would fail
        assert (theory.mean(a, share)[conflict] > 0).all()  # grad J_1 != 0


def test_corollary_4_4_is_attained_and_its_ends():
    a, share = torch.tensor([-1.0, 1.5]).double(), torch.full((2,), 0.5).double()
    w = torch.tensor([4.0, 0.5]).double()
    found = theory.margin(w, a, share)
    assert found.delta == pytest.approx(4 * 0.5 - 0.5 * 0.75)
    assert found.delta == pytest.approx(-float(theory.mean(w * a, share)))
    assert theory.margin(w, a.abs(), share).delta == pytest.approx(-4 * 1.25)
    assert theory.margin(w, torch.zeros(2).double(), share).delta == 0


def test_proposition_4_5():
    a, p, share = signed_instances(4000, 2)
    below = a < 0
    keep = below.any(-1)
    a, p, share, below = a[keep], p[keep], share[keep], below[keep]
    slack = torch.rand(len(a), generator=torch.Generator().manual_seed(0)).double()
    hard = torch.where(below, p, 0.0).amax(-1)
    easy = torch.where(below, 1.0, p).amin(-1)
    middle = (easy + hard) / 2
    hard, easy = hard + slack * (middle - hard) * 0.9, easy - slack * (easy - middle) * 0.9
    k_star = theory.critical_k(a, share, easy, hard)
    assert len(a) >= 500 and (k_star >= 1).all() and k_star.isfinite().all()
    early = 0
    for above in (1e-9, 0.5, 3, 30):  # real k: nothing in the proof asks for whole ones
        k = k_star + above
        w = k[:, None] * (1 - p) ** (k[:, None] - 1)
        assert (theory.mean(w * a, share) < 0).all()
        assert (theory.margin(w, a, share).delta > 0).all()
        half = 1 + (k_star - 1) / 2
        w = half[:, None] * (1 - p) ** (half[:, None] - 1)
        early += int((theory.mean(w * a, share) > 0).sum())
    assert early > 0  # below k* there need not be conflict


def test_k_star_is_the_sign_change_of_two_prompts():
    """a = (-1, 3), p = (.1, .8): 3 (.2)^(k-1) = (.9)^(k-1) at k = 1 + log 3 / log 4.5."""
    a, share = torch.tensor([-1.0, 3.0]).double(), torch.full((2,), 0.5).double()
    p = torch.tensor([0.1, 0.8]).double()
    k_star = theory.critical_k(a, share, p[1], p[0])
    assert k_star == pytest.approx(1 + math.log(3) / math.log(4.5))
    for k, sign in ((k_star - 1e-6, 1), (k_star + 1e-6, -1)):
        assert torch.sign(theory.mean(k * (1 - p) ** (k - 1) * a, share)) == sign
    assert theory.critical_k(a.abs(), share, p[1], p[0]) == math.inf
    assert theory.critical_k(a, share, torch.tensor(1.0).double(), p[0]) == 1
    with pytest.raises(AssertionError, match="easy > hard"):
        theory.critical_k(a, share, p[0], p[1])


# --- 4.6 needs a policy: batches of logistic bandits p = sigmoid(y <theta, psi>)


def bandits(instances: int, seed: int):
    """theta [B, 3], psi [B, N, 3], y [B, N], most with an easy and a hard prompt at odds."""
    draw = torch.Generator().manual_seed(seed)
    psi = 0.3 * torch.randn(instances, 4, 3, generator=draw, dtype=torch.float64)
    psi[..., 0] += 1
    theta = torch.randn(instances, 3, generator=draw, dtype=torch.float64)
    theta[:, 0] -= 1.5
    y = torch.tensor([-1.0, -1.0, 1.0, 1.0]).double().expand(instances, 4)
    return theta, psi, y


def rates(theta, psi, y):
    return torch.sigmoid(y * torch.einsum("bnd,bd->bn", psi, theta))


def gradients(theta, psi, y):
    p = rates(theta, psi, y)
    return p, (y * p * (1 - p))[..., None] * psi


SHARE = torch.full((4,), 0.25).double()


@pytest.fixture(scope="module")
def conflicting():
    """Instances of delta(theta) > 0, with their k, bounds and gradient of J_k."""
    theta, psi, y = bandits(6000, 3)
    k = torch.tensor([2, 3, 5, 8, 16, 32]).repeat(1000)
    p, g = gradients(theta, psi, y)
    w = k[:, None] * (1 - p) ** (k[:, None] - 1)
    delta = theory.margin(w, theory.agreement(g @ g.mT, SHARE), SHARE).delta
    keep = delta > 0
    d = (w[..., None] * g).mean(1)
    score = psi.norm(dim=-1).amax(-1)
    found = (theta, psi, y, k, delta, d, score, score**2 / 4)
    found = tuple(x[keep] for x in found)
    assert len(found[0]) >= 500
    return found


@pytest.mark.parametrize("sharp", [False, True])
@pytest.mark.parametrize("part", [0.01, 0.5, 1.0])
def test_proposition_4_6(conflicting, part, sharp):
    """At part = 1, the end point, too: it is strict there, by more than the paper's bound says."""
    theta, psi, y, k, delta, d, score, curvature = conflicting
    eta = part * theory.step_limit(delta, k, score, curvature, sharp)
    assert (eta > 0).all()
    before, g = gradients(theta, psi, y)
    after = rates(theta + eta[:, None] * d, psi, y)
    change_1 = (after - before).mean(-1)
    change_k = ((1 - before) ** k[:, None] - (1 - after) ** k[:, None]).mean(-1)
    slopes = eta * (g.mean(1) * d).sum(-1), eta * d.square().sum(-1)
    small_1, small_k = change_1.abs() < 1e-12, change_k.abs() < 1e-12
    assert (torch.where(small_1, slopes[0], change_1) < 0).all()
    assert (torch.where(small_k, slopes[1], change_k) > 0).all()
    assert small_1.double().mean() < 0.5  # most were really asked
    c_2 = theory.smoothness(1, score, curvature) * (k * score) ** 2 / 2
    assert (change_1 <= -eta * delta + eta**2 * c_2 + 1e-13).all()


def test_step_limit_by_hand():
    """G = 2, F = 5, k = 3: L_1 = 9, L_3 = 51, C_2 = 9 * 36 / 2; sharp, |grad J_3| <= (4/9) G."""
    score, curvature = torch.tensor(2.0).double(), torch.tensor(5.0).double()

    def limit(delta, sharp=False):
        return float(theory.step_limit(torch.tensor(delta).double(), 3, score, curvature, sharp))

    assert limit(0.1) == pytest.approx(0.1 / 162)
    assert limit(100.0) == pytest.approx(1 / 51)
    assert limit(0.1, sharp=True) == pytest.approx(0.1 / (9 * (8 / 9) ** 2 / 2))
    assert limit(1e9, sharp=True) == pytest.approx(1 / (4 / 9 * 9 + 4 * (2 / 3) * (1 / 3) * 4))
    assert limit(-0.1) < 0


def test_a_step_too_long_can_raise_pass_1(conflicting):
    theta, psi, y, k, delta, d, score, curvature = conflicting
    eta = 1e5 * theory.step_limit(delta, k, score, curvature)
    after, before = rates(theta + eta[:, None] * d, psi, y), rates(theta, psi, y)
    assert ((after - before).mean(-1) > 0).any()


def test_a_point_without_gradient_is_not_raised():
    """(18) needs grad J_k != 0: at the top of J_k a step goes nowhere."""
    psi = torch.tensor([[[1.0], [1.0]]]).double()
    theta, y = torch.zeros(1, 1).double(), torch.tensor([[-1.0, 1.0]]).double()
    p, g = gradients(theta, psi, y)
    d = (pass_at_k_weight(p, 4)[..., None] * g).mean(1)
    assert torch.equal(d, torch.zeros(1, 1).double())
    assert torch.equal(rates(theta + d, psi, y), p)


def test_lemma_c_1():
    """The Hessian of f_k of one prompt is within both constants, which meet at k = 1."""
    theta, psi, y = bandits(1500, 4)
    logit = (psi * theta[:, None]).sum(-1) * y
    p, length = torch.sigmoid(logit), psi.norm(dim=-1)
    score, curvature = length, length**2 / 4
    tightest = 0.0
    for k in (1, 2, 3, 8, 64):
        w, slope = pass_at_k_weight(p, k), p * (1 - p)
        bend = -k * (k - 1) * (1 - p) ** max(k - 2, 0)
        hessian = (w * slope * (1 - 2 * p) + bend * slope**2).abs() * length**2
        sharp = theory.smoothness_sharp(k, score, curvature)
        assert (hessian <= sharp).all()
        assert (sharp <= theory.smoothness(k, score, curvature) + 1e-12).all()
        assert (sharp <= curvature + 3 * score**2 + 1e-12).all()
        tightest = max(tightest, float((hessian / sharp).max()))
    assert tightest > 0.1
    torch.testing.assert_close(
        theory.smoothness(1, score, curvature), theory.smoothness_sharp(1, score, curvature)
    )
    assert theory.smoothness(3, torch.tensor(2.0), torch.tensor(5.0)) == 9 * 4 + 3 * 5


@pytest.mark.parametrize("k", [1, 2, 5, 40])
def test_single_success(k):
    p = torch.linspace(0, 1, 20001).double()
    best = float((k * p * (1 - p) ** (k - 1)).max())
    assert float(theory.single_success(k)) == pytest.approx(best, abs=1e-6)
