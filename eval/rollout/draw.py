"""One token of each row: drawn from logits, with its log-probability and entropy."""

from typing import NamedTuple

import torch
from torch import Tensor

from eval.policy.logprobs import log_softmax
from eval.rollout.rollout import Decoding

BLOCK = 512  # tokens whose probability is summed at once


SLICE = 2**24  # probabilities that exist at once: rows are drawn in slices


class Token(NamedTuple):
    """A token of each row, with its log-probability, its entropy and a gradient."""

    token: Tensor
    logprob: Tensor
    entropy: Tensor
    gradient: (
        Tensor  # [rows, vocabulary] d logprob / d logits; no columns where it is not asked for
    )


def draw(logits: Tensor, decoding: Decoding, u: Tensor) -> Token:
    """Draw one token a row by inversion of the cumulative distribution at u."""
    rows = max(1, SLICE // logits.shape[1])
    if len(logits) <= rows:
        return _draw(logits, decoding, u)
    slices = zip(logits.split(rows), u.split(rows), strict=True)
    parts = [_draw(part, decoding, v) for part, v in slices]
    return Token(*(torch.cat(x) for x in zip(*parts, strict=True)))


def _draw(logits: Tensor, decoding: Decoding, u: Tensor) -> Token:
    temperature = decoding.temperature or 1.0
    logp = log_softmax(logits, temperature, decoding.top_p)
    # from a large vocabulary, exponentials in float32 move one draw in 100,000; on many a GPU those
    # in float64 take 64 times as long
    exact = logits.device.type == "cpu" or logp.shape[1] <= BLOCK
    p = logp.to(torch.float64 if exact else logp.dtype, copy=True).exp_()
    token = logp.argmax(1) if decoding.temperature == 0 else inverted(p, u)
    index = token[:, None]
    chosen = logp.gather(1, index).squeeze(1)
    entropy = -(p.to(logp.dtype) * logp.clamp_(min=torch.finfo(logp.dtype).min)).sum(1)
    if not decoding.features:
        return Token(token, chosen, entropy, logits[:, :0])
    gradient = p.neg_().scatter_add_(1, index, torch.ones_like(p[:, :1])).div_(temperature)
    return Token(token, chosen, entropy, gradient.to(logits.dtype))


def inverted(p: Tensor, u: Tensor) -> Tensor:
    """Find the token of each row at which the cumulative distribution `p` passes u.

    Probabilities are summed in float64, first over blocks of tokens and then within one block. No
    token of probability 0 is drawn. Where `p` is not finite it is the last token.
    """
    size = p.shape[1]
    u = u.clamp(max=1 - 2**-52)[:, None]  # rounding takes no u to the last level
    if size <= BLOCK:
        levels = p.double().cumsum(1)
        token = torch.searchsorted(levels, u * levels[:, -1:], right=True)
        return token.squeeze(1).clamp(max=size - 1)
    full = size // BLOCK * BLOCK
    sums = p[:, :full].unflatten(1, (-1, BLOCK)).sum(2, dtype=torch.float64)
    rest = p[:, full:].sum(1, keepdim=True, dtype=torch.float64)
    levels = torch.cat([sums, rest], 1).cumsum(1)
    target = u * levels[:, -1:]
    block = torch.searchsorted(levels, target, right=True).clamp(max=levels.shape[1] - 1)
    before = torch.where(block > 0, levels.gather(1, (block - 1).clamp(min=0)), 0.0)
    places = block * BLOCK + torch.arange(BLOCK, device=p.device)
    inside = p.gather(1, places.clamp(max=size - 1)).double()
    inside = inside.where(places < size, 0.0).cumsum(1)
    token = torch.searchsorted(inside, target - before, right=True)
    last = (inside < inside[:, -1:]).sum(1, keepdim=True)  # behind it nothing has probability
    return (block * BLOCK + torch.minimum(token, last)).squeeze(1).clamp(max=size - 1)
