"""What is ascended token by token: a KL to a reference, and PPO's surrogate of later updates."""

import torch
from torch import Tensor

from surgery.estimators import below_the_others


def divergence(logprobs: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """From log pi and log pi_ref of each token [N, n, T] (0 after the end in both): the k3 estimate
    of KL(pi || pi_ref) of each completion [N, n], and token weights [N, n, T] whose sum with
    grad log pi(y_t) is unbiased for the gradient of -KL.

    k3_t = rho - 1 - log rho, rho = pi_ref/pi of token t, never negative (Schulman, "Approximating
    KL divergence"; GRPO, arXiv 2402.03300, eq. 4), has the mean KL(pi || pi_ref | y_<t). Summed
    over the completion that is the KL of whole completions. Its gradient has two parts: that
    of k3_t itself, (1 - rho) grad log pi(y_t), and what y_t does to all k3 from t on. As
    k3_t + 1 - rho = -log rho they add up to the weight

        log pi/pi_ref (y_t) + sum over later s of k3_s

    from which the mean of the other completions at the same position is taken, as a baseline. GRPO
    differentiates k3_t alone, which is the gradient of KL(pi_ref || pi | y_<t), another one. Where
    the policies are the same all is 0.
    """
    if logprobs.ndim != 3 or logprobs.shape[1] < 2 or logprobs.shape != reference.shape:
        shapes = f"{tuple(logprobs.shape)} and {tuple(reference.shape)}"
        raise ValueError(f"log-probabilities must be [prompts, n >= 2, tokens], got {shapes}")
    k1 = logprobs.double() - reference.double()
    k3 = torch.expm1(-k1) + k1
    later = k3.flip(-1).cumsum(-1).flip(-1) - k3
    return k3.sum(-1), below_the_others(k1 + later)


def surrogate(logp: Tensor, weight: Tensor, old: Tensor | None, clip: float) -> Tensor:
    """What is ascended: the sum of weight * log pi over rows, or over tokens.

    With `old`, the log-probabilities under the policy that sampled, PPO's clipped surrogate of each
    token, min(r w, clip(r, 1 - clip, 1 + clip) w), r = pi/pi_old (arXiv 1707.06347, eq. 7). Where
    the policies are the same both have the same gradient. A ratio beyond e^20 is taken as e^20,
    without a gradient: past float32's range 0 times it would be no number.
    """
    if old is None:
        return ((logp.sum(1) if weight.dim() == 1 else logp) * weight).sum()
    weight = weight[:, None] if weight.dim() == 1 else weight
    ratio = (logp - old).clamp(max=20.0).exp()
    return torch.min(ratio * weight, ratio.clamp(1 - clip, 1 + clip) * weight).sum()
