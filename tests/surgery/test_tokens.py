"""PPO's surrogate and importance weights, by hand; gradients on a policy that is enumerated."""

import pytest
import torch

from surgery.tokens import divergence, importance, surrogate

WORDS, END = 4, 3


def policy(seed):
    torch.manual_seed(seed)
    return [torch.randn(n, WORDS, dtype=torch.float64, requires_grad=True) for n in (1, WORDS)]


def completions():
    """All of at most two tokens, as (first, second or None)."""
    return [(END, None)] + [(a, b) for a in range(WORDS) if a != END for b in range(WORDS)]


def logprobs(policy):
    """[completions, 2] log pi of each token; 0 after the end."""
    first, second = (torch.log_softmax(x, -1) for x in policy)
    rows = [
        torch.stack([first[0, a], first.new_zeros(()) if b is None else second[a, b]])
        for a, b in completions()
    ]
    return torch.stack(rows)


def gradient(value, policy):
    return torch.cat([x.flatten() for x in torch.autograd.grad(value, policy)])


@pytest.fixture
def ours():
    return policy(0)


@pytest.fixture
def base():
    return logprobs(policy(1)).detach()


def kl(logp, base):
    return logp.sum(1).exp() @ (logp - base).sum(1)


def expected_weights(logp, base):
    """The mean over all pairs of samples (n = 2) of what `divergence` gives, by completion."""
    p = logp.sum(1).exp()
    value, total = 0.0, torch.zeros_like(logp)
    for i in range(len(p)):
        for j in range(len(p)):
            found, weights = divergence(logp[[i, j]][None], base[[i, j]][None])
            value += p[i] * p[j] * found.mean()
            total[[i, j]] += p[i] * p[j] * weights[0] if i != j else 0.0
            total[i] += p[i] * p[j] * weights[0].sum(0) if i == j else 0.0
    return value, total


def test_value_and_gradient_are_those_of_whole_completions(ours, base):
    logp = logprobs(ours)
    expected = gradient(kl(logp, base), ours)
    value, weights = expected_weights(logp.detach(), base)
    assert float(value) == pytest.approx(float(kl(logp, base).detach()), rel=1e-12)
    found = gradient((logprobs(ours) * weights).sum(), ours)
    assert (found + expected).abs().max() < 1e-12 * expected.abs().max()


def test_k3_differentiated_alone_would_be_another_gradient(ours, base):
    logp = logprobs(ours)
    expected = gradient(kl(logp, base), ours)
    logp = logprobs(ours)
    k3 = (base - logp).expm1() - (base - logp)
    alone = gradient(logp.detach().sum(1).exp() @ k3.sum(1), ours)
    assert (alone - expected).abs().max() > 0.1 * expected.abs().max()


def test_never_negative_and_zero_at_the_base(ours, base):
    logp = logprobs(ours).detach()
    value, weights = divergence(logp[None], logp[None])
    assert not value.any() and not weights.any()
    assert (divergence(logp[None], base[None])[0] >= 0).all()


def test_shapes_are_checked():
    for shape in ((2, 3), (2, 1, 3)):
        with pytest.raises(ValueError, match="n >= 2"):
            divergence(torch.zeros(shape), torch.zeros(shape))


def test_importance_weights_by_hand():
    """pi/pi_served of 1, 1/2, 3/2 and 4, under a cap of 2."""
    ratios = torch.tensor([1.0, 0.5, 1.5, 4.0]).double()
    assert importance(ratios.log(), 2.0).tolist() == pytest.approx([1, 0.5, 1.5, 2])
    assert importance(torch.zeros(3), 1.0).tolist() == [1, 1, 1]
    with pytest.raises(ValueError, match=r"cap = 0.5: must be at least 1"):
        importance(ratios, 0.5)


def test_importance_weights_by_enumeration():
    """Of one token the untruncated weight is unbiased; of two it corrects, but not for all, as the
    docstring says.
    """
    ours, theirs = policy(0), [x + 0.2 for x in policy(0)]
    theirs = [x + 0.2 * torch.randn_like(x) for x in theirs]
    logp, served = logprobs(ours), logprobs(theirs).detach()
    rewards = torch.randn(len(logp), dtype=torch.float64)
    p = served.sum(1).exp()

    def gradient(weights, tokens=slice(None)):
        return torch.autograd.grad(
            (p[:, None] * rewards[:, None] * weights * logp)[:, tokens].sum(),
            ours[0],
            retain_graph=True,
        )[0]

    difference = (logp - served).detach()
    (true,) = torch.autograd.grad(logp.sum(1).exp() @ rewards, ours[0], retain_graph=True)
    unbiased = gradient(difference.sum(1, keepdim=True).exp())
    assert torch.allclose(unbiased, true)
    by_token, plain = gradient(importance(difference, 1e9)), gradient(torch.ones_like(logp))
    capped = gradient(importance(difference, 1.0))
    assert (by_token - true).norm() < (plain - true).norm()
    assert (by_token - true).norm() > 1e-3 and not torch.allclose(capped, by_token)
    ends = torch.tensor([b is None or a == END for a, b in completions()])
    rewards = rewards.where(ends, 0.0)  # of completions of one token alone: nothing is ignored
    (true,) = torch.autograd.grad(logp.sum(1).exp() @ rewards, ours[0], retain_graph=True)
    assert torch.allclose(gradient(importance(difference, 1e9)), true)


def test_the_clipped_surrogate_by_hand():
    """Ratios 1.5, 0.5, 1.1 and a clip of 0.2: what is good counts at most 1.2, what is bad at
    least 0.8, and beyond that nothing pulls.
    """
    for weight, value, pull in (
        (2.0, 2 * (1.2 + 0.5 + 1.1), [0.0, 1.0, 2.2]),
        (-2.0, -2 * (1.5 + 0.8 + 1.1), [-3.0, 0.0, -2.2]),
    ):
        logp = torch.tensor([[1.5, 0.5, 1.1]]).double().log().requires_grad_()
        whole = surrogate(logp, torch.tensor([weight]).double(), torch.zeros(1, 3), 0.2)
        assert whole.item() == pytest.approx(value)
        (found,) = torch.autograd.grad(whole, logp)
        assert found[0].tolist() == pytest.approx(pull)


@pytest.mark.parametrize("shape", [(2,), (2, 3)], ids=["rows", "tokens"])
def test_on_policy_both_surrogates_have_one_gradient(shape):
    logp = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(shape, dtype=torch.float64)
    plain, clipped = (
        torch.autograd.grad(surrogate(logp, weight, old, 0.2), logp)[0]
        for old in (None, logp.detach())
    )
    assert torch.equal(plain, clipped)


@pytest.mark.parametrize("weight", [-1.0, 0.0, 1.0])
def test_a_ratio_past_float32_has_no_gradient(weight):
    logp = torch.tensor([[-1.0, -1.0]], requires_grad=True)
    value = surrogate(logp, torch.tensor([weight]), torch.tensor([[-300.0, -1.0]]), 0.2)
    value.backward()
    assert value.isfinite() and logp.grad.tolist()[0] == pytest.approx([0.0, weight])
