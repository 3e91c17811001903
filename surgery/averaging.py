"""Averaging over repeats: what completions that repeat leave to chance is replaced by its mean.

Of n independent completions of a prompt let S be the set of distinct ones, pi_y their
probabilities, m_y how often each was drawn. An advantage is phi(c, f_y), so y weighs
m_y phi(c, f_y) in all. It is given the mean of that under S instead (Rao-Blackwell). The gradient
is linear in these weights, with grad log pi(y) fixed by S: so its expectation stays that of the
estimator, bias included (tower rule), and its variance cannot grow: Var = Var E[.|S] + E Var[.|S].

The law of m given S is the multinomial one, no m_y being 0: P(m | S) ~ prod_y pi_y^m_y / m_y!, over
m_y >= 1 of sum n. With m_y = 1 + e_y its sums are coefficients of products of the power series
sum_e pi_y^e z^e / (e+1)!, where m_y times a term of y's own is pi_y^e / e!. All is positive, so
nothing cancels. All distinct: the estimator itself. All equal: n is the only m there is.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Law:
    """What is known of the number c of correct completions, out of n, of each of N prompts."""

    counts: Tensor  # [N, values] the values of c
    chances: Tensor  # [N, values]
    copies: Tensor  # [N, distinct, values] E[m_y 1{c}], divided by the number of places of y
    solved: Tensor  # [N, distinct] whether y is correct
    which: Tensor  # [N, n] the distinct completion at each place

    def mean(self, values: Tensor) -> Tensor:
        """[N] E[g(c)] of the values [n+1] of g."""
        return (self.chances * values[self.counts]).sum(1)

    def advantages(self, table: Tensor) -> Tensor:
        """[N, n] of an estimator's table [n+1, 2] of `estimators.by_count`, equal completions
        sharing equally.
        """
        right, wrong = table[self.counts][:, None].unbind(-1)
        shares = (self.copies * torch.where(self.solved[..., None], right, wrong)).sum(2)
        return shares.gather(1, self.which)


def known(correct: Tensor) -> Law:
    """c as it was counted, of verdicts [N, n], each completion by itself."""
    counts, which = correct.sum(1, keepdim=True).long(), torch.arange(correct.shape[1])
    ones = torch.ones_like(correct, dtype=torch.float64)
    return Law(counts, ones[:, :1], ones[..., None], correct > 0, which.expand(correct.shape))


def given_distinct(which: Tensor, logprobs: Tensor, correct: Tensor) -> Law:
    """The law of c given the distinct completions, from [N, n] each.

    `which` numbers the distinct completions of each prompt, from 0 on. A common factor of a
    prompt's pi changes nothing, so they are scaled to sum to the number of repeats: all sums then
    stay between about e^-n and e^n, however unlikely the completions are.
    """
    assert which.shape == logprobs.shape == correct.shape and which.ndim == 2, which.shape
    (prompts, n), width = which.shape, int(which.max()) + 1

    def of_distinct(values: Tensor, nothing: float) -> Tensor:
        start = torch.full((prompts, width), nothing, dtype=torch.float64)
        return start.scatter_reduce(1, which, values.double(), "amax")

    logs = of_distinct(logprobs.clamp(min=-1e30), -torch.inf)
    solved, there = of_distinct(correct, 0.0) > 0, logs > -torch.inf
    repeats = n - there.sum(1, keepdim=True)
    terms = torch.arange(int(repeats.max()) + 1)

    scaled = logs.log_softmax(1) + repeats.clamp(min=1).double().log()
    powers = terms * torch.where(there, scaled, 0.0)[..., None]
    series, own = ((powers - torch.lgamma(terms.double() + x)).exp() for x in (2, 1))
    sides = torch.stack([there & solved, there & ~solved])
    products, others = _products(torch.where(sides[..., None], series, _one(series)))
    mine = _times(own, torch.where(solved[..., None], others[0], others[1]))

    # the last axis is the number of repeats that are correct; the rest of them are wrong
    rest = repeats - terms

    def of_rest(x: Tensor) -> Tensor:
        index = rest.clamp(min=0).view(prompts, *[1] * (x.ndim - 2), -1).expand(x.shape)
        return x.gather(-1, index) * (rest >= 0).view(prompts, *[1] * (x.ndim - 2), -1)

    right, wrong = products[0], of_rest(products[1])
    total = (right * wrong).sum(1, keepdim=True)
    copies = torch.where(solved[..., None], mine * wrong[:, None], right[:, None] * of_rest(mine))
    places = torch.zeros_like(logs).scatter_add(1, which, torch.ones_like(which).double())
    copies = copies / (total * places.clamp(min=1))[..., None]
    counts = (sides[0].sum(1, keepdim=True) + terms).clamp(max=n)  # beyond n the chance is 0
    return Law(counts, right * wrong / total, copies, solved, which)


def _one(series: Tensor) -> Tensor:
    """The power series 1, as long as those given."""
    return (torch.arange(series.shape[-1]) == 0).to(series)


def _times(a: Tensor, b: Tensor) -> Tensor:
    """The product of power series [..., terms], cut at as many terms."""
    terms = a.shape[-1]
    product = a[..., :1] * b
    for i in range(1, terms):
        product[..., i:] += a[..., i : i + 1] * b[..., : terms - i]
    return product


def _products(series: Tensor) -> tuple[Tensor, Tensor]:
    """Of [..., m, terms]: the product of all m, and for each of them that of the others, by halves.

    Division would do it as well, but for the digits it loses.
    """
    m = series.shape[-2]
    if m == 1:
        return series.squeeze(-2), _one(series).expand(series.shape)
    if m % 2:
        series = torch.cat([series, _one(series).expand(series[..., :1, :].shape)], -2)
    left, right = series[..., ::2, :], series[..., 1::2, :]
    total, others = _products(_times(left, right))
    each = torch.stack([_times(others, right), _times(others, left)], -2).flatten(-3, -2)
    return total, each[..., :m, :]
