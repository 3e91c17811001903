"""Pass@k of a prompt, its weights, and their unbiased estimates from c correct answers among n.

All estimates use one quantity: the probability that k of the n answers, drawn without replacement,
miss all c correct ones, C(n-c, k) / C(n, k).
"""

import torch
from torch import Tensor


def pass_at_k(p: Tensor, k: int) -> Tensor:
    """f_k(p) = 1 - (1-p)^k, accurate for tiny p (arXiv 2602.21189, eq. 1)."""
    return -torch.expm1(k * torch.log1p(-p.double()))


def pass_at_k_weight(p: Tensor, k: int) -> Tensor:
    """w_k(p) = f_k'(p) = k (1-p)^(k-1): how pass@k re-weights the prompts of pass@1."""
    return k * (1 - p.double()) ** (k - 1)


def miss(n: int, c: Tensor, k: int) -> Tensor:
    """C(n-c, k) / C(n, k) for counts c, in float64.

    The value is the stable product of (1 - k/j) over j = n-c+1..n. k = 0 gives 1. k > n has no
    unbiased estimate and raises an error.
    """
    if not 0 <= k <= n:
        raise ValueError(f"k = {k} needs at least k samples, but n = {n}")
    if c.numel() and not 0 <= int(c.min()) <= int(c.max()) <= n:
        raise ValueError(f"counts must lie in 0..{n}, got {int(c.min())}..{int(c.max())}")
    j = torch.arange(n, 0, -1, dtype=torch.float64, device=c.device)
    # exactly 0 from the first j <= k on: fewer than k wrong answers left
    factors = (1 - k / j).clamp_(min=0)
    table = torch.cat([factors.new_ones(1), factors.cumprod(0)])
    return table[c.long()]


def rho(n: int, c: Tensor, k: int) -> Tensor:
    """1 - C(n-c, k)/C(n, k), the unbiased estimate of pass@k from c correct among n.

    Source: arXiv 2107.03374, eq. 1.
    """
    return 1 - miss(n, c, k)


def prompt_weight(n: int, c: Tensor, k: int) -> Tensor:
    """k C(n-c, k-1)/C(n, k-1), the unbiased estimate of w_k(p).

    Rules decide by this weight; advantages never contain it.
    """
    return k * miss(n, c, k - 1)
