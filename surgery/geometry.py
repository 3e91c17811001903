"""Inner products between the gradients of pass@k and pass@1, from features or probes.

A feature u_ij stands for grad log pi(y_ij) of a completion, exactly or by proxy; a probe s_ij is
its product with one direction. Any estimator's gradient of prompt i is g_i = sum_j A_ij u_ij, so
every product below combines features or probes with advantages, for any estimator and any k.

The naive products of batch means contain each prompt's product with itself, a non-negative term
that hides conflicts when gradients are noisy. `loo` leaves that diagonal out and is unbiased. It
uses all pairs i != j of features, or pairs of probes from different halves of the batch.
"""

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass

import torch
from torch import Tensor

from surgery.objectives import prompt_weight


@dataclass(frozen=True)
class Products:
    """The 2x2 Gram of (J_k, J_1); `norm_k` is NaN if it was not measured."""

    dot: float  # <J_k, J_1>
    norm_1: float  # |J_1|^2
    norm_k: float  # |J_k|^2

    @property
    def finite(self) -> bool:
        return math.isfinite(self.dot + self.norm_1) and not math.isinf(self.norm_k)

    @property
    def cosine(self) -> float:
        """The cosine of J_k and J_1; 0 if a norm is 0, NaN without |J_k|."""
        scale = self.norm_1 * self.norm_k
        if math.isnan(scale):
            return math.nan
        return max(-1.0, min(1.0, self.dot / math.sqrt(scale))) if scale > 0 else 0.0


@dataclass(frozen=True)
class Others:
    """Estimates [N, n] for each completion from the other completions of its prompt."""

    weights: Tensor  # unbiased estimates of w_k
    agreement: Tensor  # a_i


@dataclass(frozen=True)
class Geometry:
    """The inputs of a rule beside the weights; values without a measurement are None."""

    rate: Tensor  # [N] share of correct answers
    products: Products | None = None  # by the chosen statistic, smoothed, made PSD
    agreement: Tensor | None = None  # [N] a_i = <g_i, J_1>
    others: Others | None = None  # for rules that decide per prompt
    change: float | None = None  # of pass@1 since the base, see `surgery.gap.change_to_base`
    before: Products | None = None  # the products before this batch; None at the first
    pace: float = 1.0  # learning rate over its peak, 1 in the warm-up

    @property
    def finite(self) -> bool:
        """True if all measurements are finite."""
        agreement = self.agreement is None or bool(self.agreement.isfinite().all())
        return agreement and (self.products is None or self.products.finite)

    @property
    def degenerate(self) -> bool:
        """True if |J_1|^2 is measured as 0, so that ratios to it are undefined."""
        return self.products is not None and self.products.norm_1 <= 0


def prompt_gradients(advantages: Tensor, features: Tensor) -> Tensor:
    """Return g_i = sum_j A_ij u_ij [N, d] of advantages [N, n], features [N n, d], in float64."""
    prompts, n = advantages.shape
    assert features.shape[0] == prompts * n, (advantages.shape, features.shape)
    return torch.einsum("ij,ijd->id", advantages.double(), features.double().view(prompts, n, -1))


def products(g_k: Tensor, g_1: Tensor, statistic: str = "loo") -> Products:
    """Return the Gram of the means of g_k and g_1 over prompts; `loo` needs two prompts or more."""
    count = len(g_1)

    def product(a: Tensor, b: Tensor) -> float:
        total = b.sum(0)
        if statistic == "naive":
            return float(a.sum(0) @ total) / count**2
        # exactly 0 if only one prompt has a gradient; a difference of totals would leave rounding
        return float((a * (total - b)).sum()) / (count * (count - 1))

    return Products(product(g_k, g_1), product(g_1, g_1), product(g_k, g_k))


def agreements(g_1: Tensor, statistic: str = "loo") -> Tensor:
    """Return a_i = <g_i, J_1> [N], J_1 the mean over all (`naive`) or other prompts (`loo`)."""
    total = g_1.sum(0)
    if statistic == "naive":
        return g_1 @ total / len(g_1)
    return (g_1 * (total - g_1)).sum(1) / (len(g_1) - 1)


def probes_of(g_1: Tensor, features: Tensor, prompts: Sequence[int] | None = None) -> Tensor:
    """Return s_ij = <u_ij, J_1> [prompts, n], J_1 the mean over all prompts except i.

    `features` belong to the listed `prompts` only, by default to all prompts.
    """
    prompts = range(len(g_1)) if prompts is None else prompts
    others = (g_1.sum(0) - g_1[list(prompts)]) / (len(g_1) - 1)
    return torch.einsum("ijd,id->ij", features.double().view(len(others), -1, g_1.shape[1]), others)


def by_others(correct: Tensor, k: int, probes: Tensor) -> Others:
    """Return weights and agreements of each completion's prompt without that completion; n >= 3.

    a_ij = sum over l != j of A_il s_il, A the `rloo` advantages among those n-1. a_ij is exactly 0
    if the others are all right or all wrong.

    A completion that takes part in the decision about its own prompt changes the direction of the
    prompt's gradient: if prompts are kept when their sample happens to agree, the mean of
    alpha_i g_i is no multiple of g_i. If the others decide, alpha_ij is independent of y_ij. With
    estimators of the form h(others) (f_ij - baseline), such as `loo` and `rloo`, the update is then
    exactly a re-weighting of prompts.
    """
    f, s, n = correct.double(), probes.double(), correct.shape[1]
    if n < 3:
        raise ValueError(f"n = {n}: this rule decides by n - 1 >= 2 other completions; take n >= 3")
    right, total = without_own(f), without_own(s)
    agreement = (without_own(f * s) - right / (n - 1) * total) / (n - 2)
    return Others(prompt_weight(n - 1, right, k), agreement)


def without_own(x: Tensor) -> Tensor:
    """Return the sums [N, n] over the other completions of each prompt.

    The sums never contain the own value. A subtraction from the total would leave rounding of the
    own value, and a completion would then decide about itself where the others sum to 0.
    """
    before, after = x.cumsum(1), x.flip(1).cumsum(1).flip(1)
    zeros = x.new_zeros(len(x), 1)
    return torch.cat([zeros, before[:, :-1]], 1) + torch.cat([after[:, 1:], zeros], 1)


def probed(a_k: Tensor, a_1: Tensor, probes: Tensor, halves: Tensor) -> tuple[Products, Tensor]:
    """Return products without |J_k|^2, and agreements, from probes s_ij = <grad log pi(y_ij), J_1>.

    `halves` [N] gives the half of each prompt. J_1 must come from the *other* half, or from the
    complete batch if there is only one half (`naive`). The halves have equal weight, whatever their
    sizes.
    """
    agreement = (a_1.double() * probes.double()).sum(1)
    per_prompt = (a_k.double() * probes.double()).sum(1)
    sides = [halves == side for side in halves.unique()]

    def mean(x: Tensor) -> float:
        return sum(float(x[side].mean()) for side in sides) / len(sides)

    return Products(mean(per_prompt), mean(agreement), math.nan), agreement


def smoothed(now: Products, before: Products | None, decay: float, count: int = 1) -> Products:
    """Return a bias-corrected exponential moving average; `before` averages `count` values.

    Every value has the weight decay^age, also the first. If the average started at the first value
    instead, one noisy batch would dominate the first 1/(1-decay) steps, where the conflict is at
    its worst.
    """
    if before is None:
        return now
    keep = decay * (1 - decay**count) / (1 - decay ** (count + 1))
    pairs = zip(astuple(before), astuple(now), strict=True)
    return Products(*(keep * old + (1 - keep) * new for old, new in pairs))


def psd(x: Products) -> Products:
    """Return the nearest positive semi-definite Gram.

    Products without the diagonal can make a square negative. If |J_1|^2 is not positive, it becomes
    0 and <J_k, J_1> stays: rules then use only its sign. Without |J_k|^2 there is no other
    condition.
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
