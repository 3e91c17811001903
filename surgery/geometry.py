"""Inner products between the gradients of pass@k and pass@1, from features or probes of
completions.

A feature u_ij stands for grad log pi(y_ij), exactly or by proxy; a probe s_ij is its product with
one
direction. Any estimator's gradient of prompt i is g_i = sum_j A_ij u_ij, so every product below is
one of features or probes with advantages, whatever the estimator and the k.

The naive products of batch means contain each prompt's product with itself, a non-negative term
that
hides conflicts when gradients are noisy. `loo` leaves that diagonal out, unbiased: over all pairs
i != j from features, or over pairs from different halves of the batch from probes.
"""

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass

import torch
from torch import Tensor

from surgery.objectives import prompt_weight


@dataclass(frozen=True)
class Products:
    """The 2x2 Gram of (J_k, J_1). `norm_k` is NaN where it was not measured."""

    dot: float  # <J_k, J_1>
    norm_1: float  # |J_1|^2
    norm_k: float  # |J_k|^2

    @property
    def finite(self) -> bool:
        return math.isfinite(self.dot + self.norm_1) and not math.isinf(self.norm_k)

    @property
    def cosine(self) -> float:
        """0 where either norm is; NaN without |J_k|."""
        scale = self.norm_1 * self.norm_k
        if math.isnan(scale):
            return math.nan
        return max(-1.0, min(1.0, self.dot / math.sqrt(scale))) if scale > 0 else 0.0


@dataclass(frozen=True)
class Others:
    """What the other completions of its prompt say of each completion's prompt, [N, n] each."""

    weights: Tensor  # unbiased estimates of w_k
    agreement: Tensor  # a_i


@dataclass(frozen=True)
class Geometry:
    """What a rule may know of a batch beside the weights. What was not measured is None."""

    rate: Tensor  # [N] share of correct answers
    products: Products | None = None  # by the chosen statistic, smoothed, made PSD
    agreement: Tensor | None = None  # [N] a_i = <g_i, J_1>
    others: Others | None = None  # by what is decided where prompts are told apart

    @property
    def finite(self) -> bool:
        """Whether what was measured are numbers to decide by."""
        agreement = self.agreement is None or bool(self.agreement.isfinite().all())
        return agreement and (self.products is None or self.products.finite)

    @property
    def degenerate(self) -> bool:
        """|J_1|^2 measured as 0: a ratio to it means nothing."""
        return self.products is not None and self.products.norm_1 <= 0


def prompt_gradients(advantages: Tensor, features: Tensor) -> Tensor:
    """[N, d] g_i = sum_j A_ij u_ij, of advantages [N, n] and features [N n, d], in float64."""
    prompts, n = advantages.shape
    assert features.shape[0] == prompts * n, (advantages.shape, features.shape)
    return torch.einsum("ij,ijd->id", advantages.double(), features.double().view(prompts, n, -1))


def products(g_k: Tensor, g_1: Tensor, statistic: str = "loo") -> Products:
    """The Gram of the means of g_k and g_1 over prompts. `loo` needs at least two prompts."""
    count = len(g_1)

    def product(a: Tensor, b: Tensor) -> float:
        total = b.sum(0)
        if statistic == "naive":
            return float(a.sum(0) @ total) / count**2
        # a prompt alone with its gradient gives exactly 0, not the rounding of a difference
        return float((a * (total - b)).sum()) / (count * (count - 1))

    return Products(product(g_k, g_1), product(g_1, g_1), product(g_k, g_k))


def agreements(g_1: Tensor, statistic: str = "loo") -> Tensor:
    """[N] a_i = <g_i, J_1>, J_1 the mean over all prompts (`naive`) or over the others (`loo`)."""
    total = g_1.sum(0)
    if statistic == "naive":
        return g_1 @ total / len(g_1)
    return (g_1 * (total - g_1)).sum(1) / (len(g_1) - 1)


def probes_of(g_1: Tensor, features: Tensor, prompts: Sequence[int] | None = None) -> Tensor:
    """[prompts, n] s_ij = <u_ij, J_1>, J_1 the mean over all prompts but i.

    `features` are those of the named `prompts` only, by default of all.
    """
    prompts = range(len(g_1)) if prompts is None else prompts
    others = (g_1.sum(0) - g_1[list(prompts)]) / (len(g_1) - 1)
    return torch.einsum("ijd,id->ij", features.double().view(len(others), -1, g_1.shape[1]), others)


def by_others(correct: Tensor, k: int, probes: Tensor) -> Others:
    """Weights and agreements of each completion's prompt, without that completion; needs n >= 3.

    a_ij = sum over l != j of A_il s_il, A the `rloo` advantages among those n-1. It is exactly 0
    where the others are all right or all wrong.

    Why: a completion that helps to decide about its own prompt bends the prompt's gradient. Kept
    where its sample happens to agree and left out where not, the mean of alpha_i g_i is no multiple
    of g_i. Decided by the others, alpha_ij is independent of y_ij, and with the estimators of the
    form h(others) (f_ij - baseline), such as `loo` and `rloo`, the update is exactly a re-weighting
    of prompts.
    """
    f, s, n = correct.double(), probes.double(), correct.shape[1]
    if n < 3:
        raise ValueError(f"a prompt is told apart by n - 1 >= 2 other completions, but n = {n}")
    right, total = without_own(f), without_own(s)
    agreement = (without_own(f * s) - right / (n - 1) * total) / (n - 2)
    return Others(prompt_weight(n - 1, right, k), agreement)


def without_own(x: Tensor) -> Tensor:
    """[N, n] sums over the other completions of each prompt.

    Added up without the own value, never added and taken away again: that leaves its rounding, by
    which a completion would decide about itself where the rest is 0.
    """
    before, after = x.cumsum(1), x.flip(1).cumsum(1).flip(1)
    zeros = x.new_zeros(len(x), 1)
    return torch.cat([zeros, before[:, :-1]], 1) + torch.cat([after[:, 1:], zeros], 1)


def probed(a_k: Tensor, a_1: Tensor, probes: Tensor, halves: Tensor) -> tuple[Products, Tensor]:
    """Products without |J_k|^2, and agreements, from probes s_ij = <grad log pi(y_ij), J_1>.

    `halves` [N] names the half of each prompt; J_1 must be that of the *other* half, or of the
    whole
    batch where there is one half only (`naive`). Halves weigh the same, whatever their sizes.
    """
    agreement = (a_1.double() * probes.double()).sum(1)
    per_prompt = (a_k.double() * probes.double()).sum(1)
    sides = [halves == side for side in halves.unique()]

    def mean(x: Tensor) -> float:
        return sum(float(x[side].mean()) for side in sides) / len(sides)

    return Products(mean(per_prompt), mean(agreement), math.nan), agreement


def smoothed(now: Products, before: Products | None, decay: float, count: int = 1) -> Products:
    """Exponential moving average of which `before` holds the first `count` values, bias-corrected.

    Each value weighs decay^age, the first like every other: begun at the first value instead, one
    noisy batch would decide about the first 1/(1-decay) steps, when the conflict is at its worst.
    """
    if before is None:
        return now
    keep = decay * (1 - decay**count) / (1 - decay ** (count + 1))
    pairs = zip(astuple(before), astuple(now), strict=True)
    return Products(*(keep * old + (1 - keep) * new for old, new in pairs))


def psd(x: Products) -> Products:
    """The nearest positive semi-definite Gram: leaving the diagonal out can make a square negative.

    Where |J_1|^2 is not positive it becomes 0 and <J_k, J_1> stays: its sign is all that a rule can
    still use. Without |J_k|^2 nothing else can be asked for.
    """
    if x.norm_1 <= 0:
        return Products(x.dot, 0.0, max(x.norm_k, 0.0))
    if math.isnan(x.norm_k):
        return x
    gram = torch.tensor([[x.norm_k, x.dot], [x.dot, x.norm_1]], dtype=torch.float64)
    values, vectors = torch.linalg.eigh(gram)
    if values[0] >= 0:
        return x
    gram = (vectors * values.clamp(min=0)) @ vectors.T
    return Products(float(gram[0, 1]), float(gram[1, 1]), float(gram[0, 0]))
