"""The draw in two levels against the inversion in one, in float64, of version 0.1.0."""

import pytest
import torch

from eval.policy.logprobs import log_softmax
from eval.policy.streams import uniform
from eval.rollout import draw as drawing
from eval.rollout.draw import BLOCK, draw, inverted
from eval.rollout.rollout import Decoding

ROWS = 64


def in_one_level(logp, u):
    levels = logp.double().exp().cumsum(1)
    u = u.clamp(max=1 - 2**-52)
    token = torch.searchsorted(levels, u[:, None] * levels[:, -1:], right=True).squeeze(1)
    return token.clamp(max=levels.shape[1] - 1)


def different(size, batches, decoding, dtype=torch.float32):
    """How many of the draws differ, over flat and peaked distributions."""
    torch.manual_seed(size)
    count = 0
    for i in range(batches):
        logits = (torch.randn(ROWS, size) * (0.5 + i % 5 * 2)).to(dtype)
        u = uniform(size, torch.arange(ROWS), i)
        logp = log_softmax(logits, decoding.temperature, decoding.top_p)
        count += int((in_one_level(logp, u) != draw(logits, decoding, u).token).sum())
    return count


@pytest.mark.parametrize("top_p", [1.0, 0.9])
@pytest.mark.parametrize("size", [2, 24, BLOCK - 1, BLOCK, BLOCK + 1, 4 * BLOCK, 5000])
def test_the_same_tokens(size, top_p):
    assert different(size, 40, Decoding(1, 0.7, top_p)) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_tokens_of_a_large_vocabulary(dtype):
    assert different(151_936, 8, Decoding(1), dtype) == 0


@pytest.mark.slow
def test_the_same_tokens_in_a_hundred_thousand_draws():
    assert different(152_064, 100_000 // ROWS + 1, Decoding(1)) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_two_levels_find_the_token_of_one(dtype):
    """Of the same probabilities, those in float32 as on a GPU: also where all are alike."""
    torch.manual_seed(0)
    for i in range(10):
        p = (torch.randn(ROWS, 20_000) * 0.3 * i).softmax(1).to(dtype)
        u = uniform(5, torch.arange(ROWS), i)
        assert torch.equal(inverted(p, u), in_one_level(p.double().log(), u))


def test_the_exact_distribution():
    """Each token gets the share of u that is its probability, to the last block and token."""
    weights = torch.tensor([[1, 0, 3, 0] * 400 + [0, 0, 2, 0, 0]], dtype=torch.float64)
    p = (weights / weights.sum()).float()
    u = (torch.arange(40_000, dtype=torch.float64) + 0.5) / 40_000
    tokens = inverted(p.expand(len(u), -1), u)
    shares = torch.bincount(tokens, minlength=p.shape[1]) / len(u)
    assert (shares - p[0]).abs().max() <= 1 / len(u)
    assert (p[0, tokens] > 0).all()


@pytest.mark.parametrize("size", [3, BLOCK + 3])
@pytest.mark.parametrize("u", [0.0, 1 - 2**-53, 1.0])
def test_no_token_of_probability_0(size, u):
    p = torch.zeros(1, size)
    p[0, size // 2] = 1.0
    assert inverted(p, torch.tensor([u]).double()).item() == size // 2


@pytest.mark.parametrize("decoding", [Decoding(1, features=True), Decoding(1, 0.0)])
def test_slices_of_rows_change_nothing(decoding, monkeypatch):
    logits = torch.randn(10, 700, generator=torch.Generator().manual_seed(0))
    u = uniform(0, torch.arange(10), 0)
    together = draw(logits, decoding, u)
    monkeypatch.setattr(drawing, "SLICE", 3 * 700)
    apart = draw(logits, decoding, u)
    assert all(torch.equal(x, y) for x, y in zip(together, apart, strict=True))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("top_p", [1.0, 0.8])
def test_the_gradient_is_autograds(temperature, top_p):
    decoding = Decoding(1, temperature, top_p, features=True)
    logits = torch.randn(5, 900, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    logits.requires_grad_()
    drawn = draw(logits.detach(), decoding, uniform(1, torch.arange(5), 0))
    logp = log_softmax(logits, temperature, top_p).gather(1, drawn.token[:, None])
    (expected,) = torch.autograd.grad(logp.sum(), logits)
    assert torch.allclose(drawn.gradient, expected, atol=1e-14)
    assert torch.allclose(drawn.logprob, logp.detach()[:, 0])
