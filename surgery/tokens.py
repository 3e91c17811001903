"""Objectives token by token: a KL to a reference, importance weights, and PPO's surrogate."""

import torch
from torch import Tensor

from surgery.estimators import below_the_others


def divergence(logprobs: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Return k3 estimates of KL(pi || pi_ref) and the token weights of the gradient of -KL.

    `logprobs` and `reference` are log pi and log pi_ref of each token [N, n, T], 0 after the end in
    both. The estimates are one per completion [N, n]. The sum of the token weights [N, n, T] times
    grad log pi(y_t) is unbiased for the gradient of -KL.

    k3_t = rho - 1 - log rho, rho = pi_ref/pi of token t, is never negative (Schulman,
    "Approximating KL divergence"; GRPO, arXiv 2402.03300, eq. 4) and has the mean
    KL(pi || pi_ref | y_<t). The mean of its sum over a completion is the KL of complete answers.
    The gradient has two parts: the gradient of k3_t itself, (1 - rho) grad log pi(y_t), and the
    effect of y_t on all k3 from t on. Because k3_t + 1 - rho = -log rho, they add up to the weight

        log pi/pi_ref (y_t) + sum over later s of k3_s

    minus a baseline, the mean of the other completions at the same position. GRPO differentiates
    k3_t alone, which gives the gradient of another divergence, KL(pi_ref || pi | y_<t). For equal
    policies all results are 0.
    """
    if logprobs.ndim != 3 or logprobs.shape[1] < 2 or logprobs.shape != reference.shape:
        shapes = f"{tuple(logprobs.shape)} and {tuple(reference.shape)}"
        raise ValueError(f"log-probabilities must be [prompts, n >= 2, tokens], got {shapes}")
    k1 = logprobs.double() - reference.double()
    k3 = torch.expm1(-k1) + k1
    later = k3.flip(-1).cumsum(-1).flip(-1) - k3
    return k3.sum(-1), below_the_others(k1 + later)


def importance(difference: Tensor, cap: float) -> Tensor:
    """Return the truncated importance weights min(pi/pi_served, cap) of tokens.

    `difference` is log pi - log pi_served of each token, which pi_served drew. Truncated weights
    bound the variance of importance sampling (Ionides 2008; token by token IMPALA, arXiv
    1802.01561, eq. 1).

    They do not make the gradient unbiased for pi. The unbiased weight of grad log pi(y_t) is the
    untruncated product of the ratios of all tokens of the completion. The ratio of y_t alone
    ignores that pi_served also drew the tokens before, by which the state was reached, and those
    after, by which the reward was earned. Truncation takes the mean of the weights below 1. A
    baseline loses its mean of 0 in the same way. All these errors are of the first order in the
    difference. For equal distributions all weights are 1, and nothing changes.
    """
    if cap < 1:
        raise ValueError(f"cap = {cap}: must be at least 1, the weight of equal distributions")
    return difference.double().exp().clamp(max=cap)


def surrogate(logp: Tensor, weight: Tensor, old: Tensor | None, clip: float) -> Tensor:
    """Return the objective to ascend: the sum of weight * log pi over rows, or over tokens.

    With `old`, the log-probabilities under the policy that sampled, the summand is PPO's clipped
    surrogate of each token, min(r w, clip(r, 1 - clip, 1 + clip) w), r = pi/pi_old (arXiv
    1707.06347, eq. 7). For equal policies both forms have the same gradient. A ratio above e^20
    counts as e^20 and has no gradient: beyond float32's range, its product with 0 would be NaN.
    """
    if old is None:
        return ((logp.sum(1) if weight.dim() == 1 else logp) * weight).sum()
    weight = weight[:, None] if weight.dim() == 1 else weight
    ratio = (logp - old).clamp(max=20.0).exp()
    return torch.min(ratio * weight, ratio.clamp(1 - clip, 1 + clip) * weight).sum()
