"""Advantages A[N, n] from verdicts f[N, n] in {0, 1}.

The gradient estimate of prompt i is sum_j A_ij grad log pi(y_ij), a plain sum: A contains the 1/n.
All arithmetic is float64. Every estimator has the signature
``(verdicts, k, **options) -> advantages``; those that ignore k ascend an objective of their own.
Below, c is the number of correct answers of the prompt and c_i = c - f_i the same without answer i.

`weighted` and `centred` build most of them. Each docstring says what the estimator ascends: a name
of p and the weight of grad p at finite n, exact, or the limit for many samples.
"""

import math
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


def centred(verdicts: Tensor, u: Callable[[Tensor, int], Tensor]) -> Tensor:
    """u(c, n) (f_i - c/n) / n: the form of group-relative advantages.

    The weight of grad p is exactly (n-1)/n E[u(1 + Bin(n-2, p), n)], so u(p n, n) for many samples:
    c (n-c) times the chance of c among n is n (n-1) p (1-p) times the chance of c-1 among n-2. u
    must be finite at c = 0 and c = n, where every advantage is 0.
    """
    f, _, n = _others(verdicts)
    c = f.sum(1, keepdim=True)
    return u(c, n) * (f - c / n) / n


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


def loo_shrunk(verdicts: Tensor, k: int) -> Tensor:
    """`loo` with the James-Stein baseline b_ij of the whole batch: unbiased for grad f_k; k <= n.

    (k/n) C(n-1-c_i, k-1)/C(n-1, k-1) (f_i - b_ij); the source has k = 1. Prompts with only correct
    or only wrong answers get a signal too, so more completions need a backward.
    """
    f, others, n = _others(verdicts)
    return k * miss(n - 1, others, k - 1) * (f - shrunk_baseline(verdicts)) / n


def shrunk_baseline(verdicts: Tensor) -> Tensor:
    """Return c_i/(n-1) moved towards the other prompts' mean rate [N, n].

    The share drawn is (N-1)/N v/(v + s): v is the mean sampling variance of the other prompts'
    rates, s the variance among these rates. Neither contains the own prompt, and the own rate lacks
    the own answer, so the baseline is independent of it. A single prompt keeps c_i/(n-1). Source:
    arXiv 2511.03710, eq. 16.
    """
    f, others, n = _others(verdicts)
    c, rest = f.sum(1, keepdim=True), max(len(f) - 1, 1)
    # sums over the other prompts, of whole numbers: the own prompt leaves no rounding in them
    right, squares, products = (x.sum() - x for x in (c, c * c, c * (n - c)))
    within, among = rest * products, (n - 1) * (rest * squares - right**2)
    share = torch.where(within > 0, within / (within + among), torch.zeros_like(within))
    own = others / (n - 1)
    return own + share * rest / len(f) * (right / (rest * n) - own)


def posterior_passk(
    verdicts: Tensor, k: int, *, prior_right: float = 1.0, prior_wrong: float = 1.0
) -> Tensor:
    """`weighted` with h(c_i) = E[w_k(q)], q ~ Beta(prior_right + c_i, prior_wrong + n-1-c_i).

    h(c) = k B(a+c, b+n-1-c+k-1)/B(a+c, b+n-1-c), for any k >= 1, also beyond n. Ascends pass@k as a
    posterior from n-1 answers sees it: the weight is E[h(Bin(n-1, p))], and w_k as n grows. After
    Bayesian Boundary Gating (arXiv 2606.15455, eq. 8), which takes the posterior from all n
    answers, with a = b = 1, and sets small weights to 0.
    """

    def h(others: Tensor, n: int) -> Tensor:
        j = torch.arange(k - 1, dtype=torch.float64, device=others.device)
        wrong = prior_wrong + n - 1 - others
        return k * ((wrong[..., None] + j) / (prior_right + prior_wrong + n - 1 + j)).prod(-1)

    return weighted(verdicts, h)


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
    (1 - R - C(n-c-1, k-1)/C(n-1, k-1))/(s n). Where s = 0 every advantage is 0. This is `centred`
    with u = n (1-R)/((n-c) s).
    """
    f, others, n = _others(verdicts)
    mean = rho(n, f.sum(1, keepdim=True), k)
    sigma = (mean * (1 - mean)).sqrt()
    wrong = 1 - mean - miss(n - 1, others, k - 1)
    advantages = torch.where(f > 0, 1 - mean, wrong) / (sigma * n)
    return torch.where(sigma > 0, advantages, torch.zeros_like(f))


def _spread(c: Tensor, n: int) -> Tensor:
    """Return the population standard deviation of n verdicts, c of them 1."""
    return (c * (n - c)).sqrt() / n


def grpo(verdicts: Tensor, k: int = 1, *, epsilon: float = 1e-6) -> Tensor:
    """`centred` with u = 1/(std + epsilon), the population std. Ignores k (arXiv 2402.03300).

    Ascends 2 arcsin sqrt(p) as n grows.
    """
    return centred(verdicts, lambda c, n: 1 / (_spread(c, n) + epsilon))


def focal(verdicts: Tensor, k: int = 1, *, gamma: float = 1.0, epsilon: float = 1e-6) -> Tensor:
    """`grpo` times (1 - c/n)^gamma: the focal scaling of F-GRPO (arXiv 2602.06717). Ignores k.

    Ascends sqrt(p (1-p)) + arcsin sqrt(p) as n grows for gamma = 1, and 2 sqrt(p) for gamma = 1/2.
    """
    return centred(verdicts, lambda c, n: (1 - c / n) ** gamma / (_spread(c, n) + epsilon))


def maxrl(verdicts: Tensor, k: int = 1) -> Tensor:
    """`centred` with u = n/c, so (f_i - c/n)/c: MaxRL (arXiv 2602.02710). Ignores k.

    Ascends the sum of pass@j / j over j < n exactly: log p, its series cut before order n. The
    update f_i/c without a baseline would hold order n too. The baseline takes it away, because a
    prompt with c = 0 subtracts nothing.
    """
    return centred(verdicts, lambda c, n: n / c.clamp(min=1))


def curverl(verdicts: Tensor, k: int = 1, *, reference: Tensor | None = None) -> Tensor:
    """`centred` with u = f(c)/F(c), mass over cumulated mass: CurveRL. Ignores k.

    `reference` [n+1] says how many prompts of earlier batches had c correct answers; c = 0 and
    c = n do not count. Without such prompts the batch is its own reference. With a reference from
    other data, u is a fixed function of c and the weight is exact at finite n. Then it ascends the
    integral of f/F, so log F(p) as n grows: the logarithm of the rank of the prompt's rate. A rate
    that the reference lacks has the weight 0, and the objective changes with the reference. Source:
    arXiv 2605.24331.
    """
    n = verdicts.shape[1]
    if reference is None or not reference[1:-1].any():
        reference = torch.bincount(verdicts.double().sum(1).long(), minlength=n + 1)
    mass = reference.double()
    mass = torch.cat([torch.zeros_like(mass[:1]), mass[1:-1], torch.zeros_like(mass[:1])])
    ratio = mass / mass.cumsum(0).clamp(min=1)
    return centred(verdicts, lambda c, n: ratio[c.long()])


def risk(verdicts: Tensor, k: int = 1, *, beta: float = 4.0) -> Tensor:
    """(1/beta)(exp(beta f_i)/mean_j exp(beta f_j) - 1)/n. Ignores k.

    RS-GRPO (arXiv 2509.24261). `centred` with u = (exp(beta) - 1)/(beta mean_j exp(beta f_j));
    ascends the log-mean-exp of the reward, log(1 - p + p exp(beta))/beta, as n grows.
    """
    f, _, n = _others(verdicts)
    tilted = torch.exp(beta * (f - f.amax(1, keepdim=True)))  # a common factor cancels
    return (tilted / tilted.mean(1, keepdim=True) - 1) / (beta * n)


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


def mixed_only(verdicts: Tensor) -> Tensor:
    """Return [N, 1] factors: N/M for the M prompts with correct and wrong answers, else 0.

    Times these factors, a mean over N prompts is one over M. This is the filter of DAPO (arXiv
    2503.14476), which also samples more prompts until M is N. Estimators that are 0 at c = 0 and at
    c = n keep their direction: each prompt's weight is multiplied by E[N/(1 + M')], M' the M of the
    other prompts, which differs between prompts by O(1/N) only. `pkpo`, `pkpo_loo` and `loo_shrunk`
    lose what they say at c = 0 and at c = n, and are biased.
    """
    c = verdicts.double().sum(1, keepdim=True)
    mixed = ((c > 0) & (c < verdicts.shape[1])).double()
    return mixed * len(mixed) / mixed.sum().clamp(min=1)


ESTIMATORS: dict[str, Estimator] = {
    fn.__name__: fn
    for fn in (
        *(rloo, plugin, loo, loo_shrunk, posterior_passk, pkpo, pkpo_loo, pkpo_loo1),
        *(passk_training, grpo, focal, maxrl, curverl, risk, power),
    )
}


# the estimators that ascend pass@k; the others ascend an objective of their own
OF_PASS_AT_K = frozenset(
    {"plugin", "loo", "loo_shrunk", "pkpo", "pkpo_loo", "pkpo_loo1", "passk_training"}
)


def largest_k(name: str, n: int) -> float:
    """Return the largest k that estimator `name` accepts with n samples; infinity: any."""
    if name not in OF_PASS_AT_K:
        return math.inf
    return n - 1 if name == "pkpo_loo" else n
