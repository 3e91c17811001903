"""The paper's printed figures, and the toy's closed forms against autograd and Monte Carlo."""

import pytest
import torch

from surgery import theory, toy
from surgery.estimators import loo, rloo
from surgery.rules import RULES

THETA = torch.tensor([-1.3, 0.7], dtype=torch.float64)
START = torch.tensor([-2.0, 0.0], dtype=torch.float64)


@pytest.fixture(scope="module")
def prompts():
    return toy.population(1.0, 0.3, 600)


@pytest.mark.parametrize("figure", toy.printed_figures(), ids=lambda x: x.name)
def test_printed_figures(figure):
    assert figure.matches, figure


def test_all_printed_figures_are_there():
    printed = [x.printed for x in toy.printed_figures()]
    assert printed == ["2.33e-7", "3.88", "-0.01", "-0.98", "-0.77", "0.48", "0.46", "0.83", "0.95"]


@pytest.mark.parametrize(
    ("printed", "value", "matches"),
    [
        ("0.48", 0.4849, True),
        ("0.48", 0.4851, False),
        ("-0.77", -0.7649, False),
        ("2.33e-7", 2.3251e-7, True),
        ("2.33e-7", 2.3249e-7, False),
        ("3.88", 3.885, True),
    ],
)
def test_a_match_is_one_within_the_rounding(printed, value, matches):
    assert toy.Figure("", printed, value).matches is matches


def test_the_printed_weights_fix_our_features():
    """0.002 further on either prompt, and w_easy or w_hard no longer rounds to the print."""
    theta = torch.tensor(toy.REFERENCE, dtype=torch.float64)
    for easy, hard in ((0.002, 0), (-0.002, 0), (0, 0.002), (0, -0.002)):
        moved = toy.bandit(torch.tensor([-0.1 + easy]), torch.tensor([0.1 + hard]))
        weights, _, _ = toy.geometry(theta, moved, 10)
        figures = zip(("2.33e-7", "3.88"), weights.tolist(), strict=True)
        assert not all(toy.Figure("", text, x).matches for text, x in figures)


@pytest.mark.parametrize("k", [1, 2, 10])
def test_closed_forms_are_the_gradients(prompts, k):
    theta = THETA.clone().requires_grad_()
    (by_hand,) = torch.autograd.grad(toy.objective(theta, prompts, k), theta)
    torch.testing.assert_close(toy.slope(THETA, prompts, k), by_hand, rtol=1e-12, atol=1e-15)
    weights, g, seen = toy.geometry(THETA, prompts, k)
    torch.testing.assert_close((weights[:, None] * g).mean(0), by_hand, rtol=1e-12, atol=1e-15)
    assert seen.products.norm_k == pytest.approx(float(by_hand @ by_hand))
    jacobian = torch.autograd.functional.jacobian(lambda x: toy.success(x, prompts), THETA)
    torch.testing.assert_close(g, jacobian, rtol=1e-12, atol=1e-15)


def test_bounds_of_score_and_curvature(prompts):
    """G and F bound the policy's score and Hessian at any theta and answer."""
    for theta in (THETA, 3 * THETA, START):
        for sign in (1.0, -1.0):
            p = torch.sigmoid(sign * prompts.features @ theta)
            length = prompts.features.norm(dim=1)
            assert ((1 - p) * length <= prompts.score_bound).all()
            assert (p * (1 - p) * length**2 <= prompts.curvature_bound).all()


@pytest.mark.parametrize(("estimator", "k"), [(rloo, 1), (loo, 1), (loo, 4)])
def test_monte_carlo_agrees_with_the_closed_form(prompts, estimator, k):
    """Sampled answers, their scores and the trainer's estimators: within five standard errors."""
    draw, repeats, n = torch.Generator().manual_seed(k), 800, 8
    p = toy.success(THETA, prompts)
    correct = torch.rand(repeats, len(p), n, generator=draw, dtype=torch.float64) < p[:, None]
    advantages = (
        estimator(correct.flatten(0, 1).long(), k)
        if estimator is loo
        else estimator(correct.flatten(0, 1).long())
    )
    # grad log pi = y psi times (1 - p) of a right answer, -p of a wrong one
    score = torch.where(correct, 1 - p[:, None], -p[:, None])
    pull = (advantages.view_as(score) * score).sum(-1) * prompts.sign
    drawn = pull @ prompts.features / len(p)
    error = drawn.std(0) / repeats**0.5
    exact = toy.slope(THETA, prompts, k)
    assert ((drawn.mean(0) - exact).abs() < 5 * error).all()
    assert (error < 0.05 * exact.abs().max()).all()  # sharp enough to tell k = 1 from k = 4


def test_population():
    found = toy.population(1.0, 0.3, 6000)
    s = found.features[:, 1]
    assert int(found.hard.sum()) == 1800
    for group, mean in ((~found.hard, -0.5), (found.hard, 0.5)):
        assert float(s[group].mean()) == pytest.approx(mean, abs=1e-9)
        assert float(s[group].std()) == pytest.approx(1, abs=2e-3)
    with pytest.raises(AssertionError, match="without prompts"):
        toy.population(1.0, 0.0)


def test_the_toy_obeys_the_theory(prompts):
    share = torch.full((len(prompts.hard),), 1 / len(prompts.hard), dtype=torch.float64)
    weights, g, seen = toy.geometry(START, prompts, 5)
    torch.testing.assert_close(theory.agreement(g @ g.T, share), seen.agreement)
    terms = theory.decomposition(weights, seen.agreement, share)
    assert float(terms.inner) == pytest.approx(seen.products.dot, rel=1e-10)
    assert terms.inner < 0 and terms.covariance < 0


def test_the_kernels_cosines_do_not_depend_on_theta(prompts):
    one, other = (toy.cosine_kernel(theta, prompts) for theta in (THETA, START))
    torch.testing.assert_close(one, other)
    assert one.diagonal().allclose(torch.ones(600, dtype=torch.float64))


def end(prompts, rule, k=5, **settings):
    path = toy.ascend(prompts, k, rule, START, 300, 1.0, **settings)
    return [float(toy.objective(path[-1], prompts, m)) for m in (1, 5)]


def test_pass_k_loses_pass_1_and_the_rules_do_not(prompts):
    base = [float(toy.objective(START, prompts, k)) for k in (1, 5)]
    published, cured = end(prompts, "none"), end(prompts, "pcgrad")
    assert published[0] < base[0] - 0.05 and published[1] > base[1] + 0.1
    assert cured[0] > base[0] - 1e-3 and cured[1] > base[1] + 0.1
    assert end(prompts, "mix", mix=0.0) == published
    assert end(prompts, "none", k=1)[0] > end(prompts, "mix", mix=1.0)[0] > base[0]


@pytest.mark.parametrize("rule", sorted(RULES))
def test_every_rule_has_a_path(prompts, rule):
    path = toy.ascend(prompts, 5, rule, START, 20, 1.0)
    assert path.shape == (21, 2) and path.isfinite().all()
    assert torch.equal(path[0], START) and not torch.equal(path[1], START)
    assert toy.objective(path[-1], prompts, 5) > toy.objective(START, prompts, 5)


def test_nothing_lies_above_the_frontier(prompts):
    theta = toy.frontier(prompts, 5, points=9)
    ends = torch.stack([toy.objective(theta, prompts, k) for k in (1, 5)], -1)
    assert (ends[1:, 0] > ends[:-1, 0]).all() and (ends[1:, 1] < ends[:-1, 1]).all()
    line = torch.linspace(-8, 8, 81, dtype=torch.float64)
    grid = torch.cartesian_prod(line, line)
    j_1, j_k = (toy.objective(grid, prompts, k) for k in (1, 5))
    for t, (on_1, on_k) in zip(torch.linspace(1, 0.05, 9), ends, strict=True):
        best = (1 - t) * on_1 + t * on_k
        assert ((1 - t) * j_1 + t * j_k <= best + 1e-6).all()
