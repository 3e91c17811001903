"""Advantages A[N, n] from verdicts f[N, n] in {0, 1}.

The gradient estimate of prompt i is sum_j A_ij grad log pi(y_ij), a plain sum: A contains the 1/n.
All arithmetic is float64. Every estimator has the signature
``(verdicts, k, **options) -> advantages``; those that ignore k ascend an objective of their own.
Below, c is the number of correct answers of the prompt and c_i = c - f_i the same without answer i.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from surgery.objectives import miss, rho

Estimator = Callable[..., Tensor]


def _others(verdicts: Tensor) -> tuple[Tensor, Tensor, int]:
    """Return (f, c_i, n) in float64, c_i the number of correct answers among the others."""
    if verdicts.ndim != 2:
        raise ValueError(f"verdicts must be [prompts, samples], got shape {tuple(verdicts.shape)}")
    n = verdicts.shape[1]
    if n < 2:
        raise ValueError(f"a leave-one-out baseline needs n >= 2 samples, got n = {n}")
    f = verdicts.double()
    return f, f.sum(1, keepdim=True) - f, n


def weighted(verdicts: Tensor, h: Callable[[Tensor, int], Tensor]) -> Tensor:
    """h(c_i, n) (f_i - c_i/(n-1)) / n: unbiased for a weighted gradient of pass@1.

    The weight of grad p is exactly E[h(Bin(n-1, p))]. c_i is independent of answer i, so weight and
    gradient factorise and the product is unbiased.
    """
    f, others, n = _others(verdicts)
    return h(others, n) * (f - others / (n - 1)) / n


def rloo(verdicts: Tensor, k: int = 1) -> Tensor:
    """Pass@1 with a leave-one-out baseline, (f_i - c_i/(n-1))/n: unbiased for grad p. Ignores k."""
    return weighted(verdicts, lambda others, n: torch.ones_like(others))


def plugin(verdicts: Tensor, k: int) -> Tensor:
    """w_k(c/n) times `rloo`: eq. 2 of arXiv 2602.21189 with the sampled success rate.

    Biased, because c/n contains f_i: at n = 8, k = 4 by -30 % for p = .05 and by +329 % for p = .8.
    """
    rate = verdicts.double().mean(1, keepdim=True)
    return k * (1 - rate) ** (k - 1) * rloo(verdicts)


def loo(verdicts: Tensor, k: int) -> Tensor:
    """(k/n) C(n-1-c_i, k-1)/C(n-1, k-1) (f_i - c_i/(n-1)): unbiased for grad f_k; k <= n.

    `weighted` with the unbiased weight of the other n-1 answers. Wrong answers get a signal too.
    k = 1 is `rloo`.
    """
    return weighted(verdicts, lambda others, n: k * miss(n - 1, others, k - 1))


def pkpo(verdicts: Tensor, k: int) -> Tensor:
    """k/n if correct, (k/n) rho(n-1, c, k-1) if wrong: unbiased for grad f_k.

    Source: arXiv 2505.15201, eq. 14.
    """
    f, others, n = _others(verdicts)
    wrong = rho(n - 1, others, k - 1)  # for a wrong answer c_i is c
    return torch.where(f > 0, torch.ones_like(f), wrong) * k / n


def pkpo_loo(verdicts: Tensor, k: int) -> Tensor:
    """`pkpo` with the leave-one-out baseline of arXiv 2505.15201: unbiased for grad f_k; k < n.

    Correct: k/n - k/(n-1) rho(n-1, c-1, k). Wrong: (k/n) rho(n-1, c, k-1) - k/(n-1) rho(n-1, c, k).
    """
    _, others, n = _others(verdicts)
    if k >= n:
        raise ValueError(f"pkpo_loo needs k < n, got k = {k} and n = {n}")
    return pkpo(verdicts, k) - k / (n - 1) * rho(n - 1, others, k)


def pkpo_loo1(verdicts: Tensor, k: int) -> Tensor:
    """(k/n) C(n-c, k-1)/C(n-1, k-1) if correct, 0 if wrong: unbiased for grad f_k.

    Source: arXiv 2505.15201. The published form divides by k-1; here k = 1 is `rloo`.
    """
    if k == 1:
        return rloo(verdicts)
    f, others, n = _others(verdicts)
    return f * (k / n) * miss(n - 1, others, k - 1)  # for a correct answer n-1-c_i = n-c


def passk_training(verdicts: Tensor, k: int) -> Tensor:
    """Group-normalised pass@k of arXiv 2508.10751; ascends (2/k) arcsin sqrt(f_k) as n grows.

    With R = rho(n, c, k) and s = sqrt(R (1-R)): correct (1-R)/(s n), wrong
    (1 - R - C(n-c-1, k-1)/C(n-1, k-1))/(s n). Where s = 0 every advantage is 0.
    """
    f, others, n = _others(verdicts)
    mean = rho(n, f.sum(1, keepdim=True), k)
    sigma = (mean * (1 - mean)).sqrt()
    wrong = 1 - mean - miss(n - 1, others, k - 1)
    advantages = torch.where(f > 0, 1 - mean, wrong) / (sigma * n)
    return torch.where(sigma > 0, advantages, torch.zeros_like(f))


def grpo(verdicts: Tensor, k: int = 1, *, epsilon: float = 1e-6) -> Tensor:
    """(f_i - c/n)/(std + epsilon)/n with the population std. Ignores k.

    Ascends 2 arcsin sqrt(p) as n grows.
    """
    f, _, n = _others(verdicts)
    centred = f - f.mean(1, keepdim=True)
    return centred / (f.std(1, correction=0, keepdim=True) + epsilon) / n


def risk(verdicts: Tensor, k: int = 1, *, beta: float = 4.0) -> Tensor:
    """(1/beta)(exp(beta f_i)/mean_j exp(beta f_j) - 1)/n. Ignores k.

    Ascends the log-mean-exp of the reward as n grows (arXiv 2509.24261).
    """
    f, _, n = _others(verdicts)
    tilted = torch.exp(beta * (f - f.amax(1, keepdim=True)))  # a common factor cancels
    return (tilted / tilted.mean(1, keepdim=True) - 1) / (beta * n)


def log(verdicts: Tensor, k: int = 1) -> Tensor:
    """`weighted` with h = n/(c_i+1): maximum likelihood, its series truncated at n. Ignores k."""
    return weighted(verdicts, lambda others, n: n / (others + 1))


def power(verdicts: Tensor, k: int = 1, *, alpha: float = 0.5) -> Tensor:
    """`weighted` with h = alpha ((c_i+1)/n)^(alpha-1): ascends about p^alpha. Ignores k.

    alpha = 1 is `rloo`.
    """
    return weighted(verdicts, lambda others, n: alpha * ((others + 1) / n) ** (alpha - 1))


def entropy(logprobs: Tensor) -> Tensor:
    """Advantages from log pi(y_i) [N, n] instead of verdicts, (mean of the others' - own)/n.

    Unbiased for the gradient of the entropy H(pi(.|x)) of complete answers:
    grad H = -E[log pi(y) grad log pi(y)], because E[grad log pi] = 0. For the same reason any
    baseline of the other answers adds no bias. This gradient contains the effect of a token on the
    entropy of all later tokens; the gradient of the entropies at the sampled positions does not. If
    all n answers are equal, the advantages are exactly 0.
    """
    if logprobs.ndim != 2 or logprobs.shape[1] < 2:
        raise ValueError(
            f"log-probabilities must be [prompts, n >= 2], got {tuple(logprobs.shape)}"
        )
    return below_the_others(logprobs)


def below_the_others(x: Tensor) -> Tensor:
    """Return (mean of the others' - own)/n over the second axis."""
    n = x.shape[1]
    apart = x.double() - x[:, :1].double()  # equal answers cancel without rounding
    return (apart.sum(1, keepdim=True) - n * apart) / (n * (n - 1))


ESTIMATORS: dict[str, Estimator] = {
    fn.__name__: fn
    for fn in (rloo, plugin, loo, pkpo, pkpo_loo, pkpo_loo1, passk_training, grpo, risk, log, power)
}


# the estimators that ascend pass@k; the others ignore k and ascend an objective of their own
OF_PASS_AT_K = frozenset({"plugin", "loo", "pkpo", "pkpo_loo", "pkpo_loo1", "passk_training"})


def largest_k(name: str, n: int) -> int:
    """Return the largest k that estimator `name` accepts with n samples."""
    return n - 1 if name == "pkpo_loo" else n
