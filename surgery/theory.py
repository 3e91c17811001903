"""The statements of arXiv 2602.21189 on pass@k against pass@1, each proved in a docstring.

Prompts x have shares D(x), pass@1 gradients g(x) = grad p(x), weights w_k(x) = k (1-p(x))^(k-1),
the kernel kappa(x, x') = <g(x), g(x')> and agreements a(x) = <g(x), grad J_1> = E_x'[kappa(x, x')].
E is over D. Leading dimensions are batches. Equation numbers are those of the paper. "Our reading"
marks a claim whose exact wording in the paper we do not know. "Conflict" is
<grad J_k, grad J_1> < 0.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


def mean(values: Tensor, share: Tensor) -> Tensor:
    """Return E[values] under the shares of the prompts, over the last dimension."""
    return (values * share).sum(-1)


def agreement(kernel: Tensor, share: Tensor) -> Tensor:
    """Return a(x) = E_x'[kappa(x, x')] [..., N] of a kernel [..., N, N]."""
    assert kernel.shape[-2] == kernel.shape[-1] == share.shape[-1], (kernel.shape, share.shape)
    return (kernel * share[..., None, :]).sum(-1)


@dataclass(frozen=True)
class Decomposition:
    """The terms of Proposition 4.1; `inner` is their sum E[w] E[a] + Cov(w, a)."""

    weight: Tensor  # E[w]
    agreement: Tensor  # E[a] = |grad J_1|^2
    covariance: Tensor  # Cov(w, a)

    @property
    def inner(self) -> Tensor:
        return self.weight * self.agreement + self.covariance


def decomposition(weights: Tensor, a: Tensor, share: Tensor) -> Decomposition:
    """<grad J_k, grad J_1> = E[w a] = E[w] |grad J_1|^2 + Cov(w, a) (Proposition 4.1; 9, 10).

    grad J_k = E[w g] by the chain rule on 1 - (1-p)^k. The product with grad J_1 = E[g] moves under
    the mean (9), and E[w a] = E[w] E[a] + Cov(w, a) with E[a] = <E[g], grad J_1> (10). Hence there
    is conflict if and only if Cov(w, a) < -E[w] |grad J_1|^2. No assumption is needed. With equal
    weights, or with grad J_1 = 0, the covariance is 0.
    """
    e_w, e_a = mean(weights, share), mean(a, share)
    centred = (weights - e_w[..., None]) * (a - e_a[..., None])
    return Decomposition(e_w, e_a, mean(centred, share))


def shifted(weights: Tensor, share: Tensor) -> Tensor:
    """D_k(x) = w_k(x) D(x) / E[w_k], the effective distribution of prompts of pass@k (11).

    grad J_k = E[w_k] E_{D_k}[g], so <grad J_k, grad J_1> = E[w_k] E_{D_k}[a]: there is conflict if
    and only if the mean agreement under D_k is negative. If E[w_k] = 0 (k > 1, every p = 1),
    grad J_k is 0 too; D_k is then D, and the identity still holds.
    """
    total = mean(weights, share)[..., None]
    return torch.where(total > 0, weights * share / total.clamp(min=1e-300), share)


def inner_product(kernel: Tensor, w_k: Tensor, w_m: Tensor, share: Tensor) -> Tensor:
    """<grad J_k, grad J_m> = E_{x,x'}[w_k(x) w_m(x') kappa(x, x')] (appendix A; 19).

    Both gradients are means of w g. The product of two means is the mean over independent pairs.
    w_m = 1 gives (9), w_m = w_k gives |grad J_k|^2.
    """
    return torch.einsum("...i,...ij,...j->...", w_k * share, kernel, w_m * share)


def interference(kernel: Tensor, w_k: Tensor, w_m: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """<grad J_k, grad J_m> as (own, cross): pairs x = x' and pairs x != x' (appendix B; 20).

    Our reading of (20) splits (19) over N distinct prompts. own = sum D^2 w_k w_m |g|^2 >= 0
    always. If no pair interferes negatively (kappa(x, x') >= 0), then cross >= 0 because weights
    are not negative, and no k conflicts with any m; conflict needs a pair with kappa < 0. With
    pairwise orthogonal gradients cross = 0. On a continuum of prompts own = 0, and cross alone
    decides.
    """
    diagonal = torch.diagonal(kernel, dim1=-2, dim2=-1)
    own = (share**2 * w_k * w_m * diagonal).sum(-1)
    return own, inner_product(kernel, w_k, w_m, share) - own


@dataclass(frozen=True)
class Margin:
    """The terms of Corollary 4.4; an empty group has 0 as its bound, which has no effect."""

    low: Tensor  # W_-, the least weight where a < 0
    high: Tensor  # W_+, the largest weight where a >= 0
    negative: Tensor  # E[|a|; a < 0]
    positive: Tensor  # E[a; a >= 0]

    @property
    def delta(self) -> Tensor:
        """delta(theta) = W_- E[|a|; a < 0] - W_+ E[a; a >= 0]."""
        return self.low * self.negative - self.high * self.positive


def margin(weights: Tensor, a: Tensor, share: Tensor) -> Margin:
    """<grad J_k, grad J_1> <= -delta(theta), so delta(theta) > 0 is conflict (Corollary 4.4).

    E[w a] = E[w a; a >= 0] - E[w |a|; a < 0] <= W_+ E[a; a >= 0] - W_- E[|a|; a < 0] = -delta.
    delta > 0 is sufficient, not necessary: one disagreeing prompt with a small weight sets W_- for
    all. Without a prompt of a < 0, delta <= 0 for any weights. Because E[a] = |grad J_1|^2 >= 0,
    delta > 0 also needs W_- > W_+, that is, every disagreeing prompt is harder than all others. It
    implies grad J_k != 0 and grad J_1 != 0.
    """
    below = a < 0
    infinity = torch.full_like(weights, torch.inf)
    low = torch.where(below, weights, infinity).amin(-1)
    high = torch.where(below, -infinity, weights).amax(-1)
    return Margin(
        torch.where(below.any(-1), low, 0.0),
        torch.where(below.all(-1), 0.0, high),
        mean((-a).clamp(min=0), share),
        mean(a.clamp(min=0), share),
    )


def critical_k(a: Tensor, share: Tensor, easy: Tensor, hard: Tensor) -> Tensor:
    """k* of Proposition 4.5: conflict for every k > k*, if difficulty separates the agreements.

    The condition is p >= easy wherever a >= 0 and p <= hard wherever a < 0, with easy > hard (the
    paper's delta_1 > delta_2).

    Then W_- >= k (1-hard)^(k-1) and W_+ <= k (1-easy)^(k-1), so by Corollary 4.4 there is conflict
    if (1-hard)^(k-1) E[|a|; a < 0] > (1-easy)^(k-1) E[a; a >= 0], that is for
        k > k* = 1 + log(E[a; a >= 0] / E[|a|; a < 0]) / log((1-hard) / (1-easy)).
    k* >= 1 because E[a] >= 0. The sign changes exactly at k* if each group has only one p. No
    prompt of a < 0: k* is infinite, never conflict. easy = 1: k* = 1, because w_k(1) = 0 for all
    k > 1.
    """
    positive, negative = mean(a.clamp(min=0), share), mean((-a).clamp(min=0), share)
    assert bool((easy > hard).all()), "the separation needs easy > hard"
    ratio = torch.log((1 - hard) / (1 - easy))
    k = 1 + torch.log(positive / negative).clamp(min=0) / ratio
    return torch.where(negative > 0, k, torch.inf)


def single_success(k: int | Tensor) -> Tensor:
    """The largest k p (1-p)^(k-1) over p, at p = 1/k: P(one of k answers is right), <= 1."""
    k = torch.as_tensor(k, dtype=torch.float64)
    return (1 - 1 / k) ** (k - 1)


def smoothness(k: int | Tensor, score: Tensor, curvature: Tensor) -> Tensor:
    """L_k = k^2 G^2 + k F: grad J_k is L_k-Lipschitz (Lemma C.1).

    Assumption: |grad log pi| <= G = `score` and |hess log pi| <= F = `curvature` for every prompt,
    answer and theta. With P the joint probability of k independent answers and R <= 1 their best
    verdict, f_k = E_P[R], hess f_k = E_P[R (hess log P + grad log P grad log P^T)], and log P is a
    sum of k terms: |grad log P| <= k G, |hess log P| <= k F. k = 1: L_1 = G^2 + F.
    """
    return k**2 * score**2 + k * curvature


def smoothness_sharp(k: int | Tensor, score: Tensor, curvature: Tensor) -> Tensor:
    """A Lipschitz constant of grad J_k below F + 3 G^2 for all k (ours, not the paper's).

    The assumptions are those of `smoothness`. hess f_k = w_k hess p + w_k' grad p grad p^T, where
    grad p = E[r grad log pi] has |grad p| <= p G, and |hess p| <= p (F + G^2) likewise. So
    |hess f_k| <= B_1(p) (F + G^2) + 2 B_2(p) G^2 with B_j(p) the probability of j right answers
    among k, B_1 <= (1-1/k)^(k-1) and, at p = 2/k,
    2 B_2 <= 4 (1-1/k) (1-2/k)^(k-2). k = 1 has no second term and is L_1 of Lemma C.1.
    """
    k = torch.as_tensor(k, dtype=torch.float64)
    two = 4 * (1 - 1 / k) * (1 - 2 / k).clamp(min=0) ** (k - 2).clamp(min=0)
    return single_success(k) * (curvature + score**2) + two * score**2


def step_limit(
    delta: Tensor, k: int | Tensor, score: Tensor, curvature: Tensor, sharp: bool = False
) -> Tensor:
    """min(delta / C_2, 1 / L_k), C_2 = L_1 k^2 G^2 / 2: steps that lower J_1 and raise J_k.

    For delta(theta) > 0 and eta below this limit, a step theta + eta grad J_k lowers J_1 and raises
    J_k (Proposition 4.6; 18).

    By smoothness and Corollary 4.4, J_1(theta + eta grad J_k) <= J_1 - eta delta + eta^2 C_2,
    because |grad J_k| <= k G. This is less than J_1 for 0 < eta < delta / C_2. At the end point
    this argument gives <= only; the inequality is still strict there for k > 1, because
    |grad J_k| <= (1-1/k)^(k-1) G < k G.
    J_k(theta + eta grad J_k) >= J_k + eta (1 - eta L_k / 2) |grad J_k|^2, which is more than J_k
    for 0 < eta < 2 / L_k if grad J_k != 0. delta > 0 implies grad J_k != 0; without delta > 0 it is
    a condition of its own.
    delta <= 0: the limit is not positive, and there is no claim. `sharp` takes the tighter
    constants, L_k from `smoothness_sharp` and (1-1/k)^(k-1) G for k G: with them the limit does not
    shrink with k.
    """
    slope = single_success(k) * score if sharp else k * score
    c_2 = smoothness(1, score, curvature) * slope**2 / 2
    l_k = (smoothness_sharp if sharp else smoothness)(k, score, curvature)
    return torch.minimum(delta / c_2, 1 / l_k)
