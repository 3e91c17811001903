"""Figures about the interference in one step, by name."""

import math
from collections.abc import Mapping

from torch import Tensor

from surgery.geometry import Products
from surgery.rules import Decision, per_prompt


def mean(x: Tensor, importance: Tensor) -> float:
    """Return the mean of x [N] over the task's problems; `importance` [N] as in a `StepBatch`."""
    return float(x.double() @ importance / importance.sum())


def of_decision(weights: Tensor, decision: Decision, importance: Tensor) -> dict[str, float]:
    """Return the rule's lambda, the mean weight E[w] and the effective sample size.

    lambda is mean beta over mean alpha. E[w] is the mean weight of pass@k before the rule. The
    effective sample size, a share of the prompts, measures how even the applied weights are.
    """
    alpha, beta = per_prompt(decision)
    applied = importance * (alpha * weights + beta)
    on_k, on_1 = mean(alpha, importance), mean(beta, importance)
    total, squares = float(applied.sum()), float(applied.square().sum())
    size = total**2 / (squares * len(weights)) if squares > 0 else 0.0
    figures = {"effective_sample_size": size}  # as a share of the prompts
    figures["mean_weight"] = mean(weights, importance)
    return figures | {"lambda": on_1 / on_k} if on_k > 0 else figures


def of_products(now: Products, naive: Products | None, decisive: Products) -> dict[str, float]:
    """Return cosine and ratio of J_k to J_1, and their smoothed lengths.

    Cosine and ratio are those of this batch, naive, and smoothed as the rule sees them. An unbiased
    Gram of one batch need not be PSD: its cosine is clipped, and 0 where a norm is not positive.
    Figures without a measurement are left out.
    """
    figures = {"conflict": float(now.dot < 0), "conflict_smoothed": float(decisive.dot < 0)}
    figures |= {"dot": now.dot, "norm_1_squared": now.norm_1}
    for name, x in (("", now), ("_naive", naive), ("_smoothed", decisive)):
        if x is not None:
            figures[f"cosine{name}"] = x.cosine
            figures[f"ratio{name}"] = x.dot / x.norm_1 if x.norm_1 > 0 else math.nan
    figures["length_1"] = math.sqrt(max(decisive.norm_1, 0.0))
    if decisive.norm_k >= 0:  # False for NaN, that is without a measurement
        figures["length_k"] = math.sqrt(decisive.norm_k)
        if decisive.norm_1 > 0:
            figures["length_ratio"] = figures["length_k"] / figures["length_1"]
    return {name: x for name, x in figures.items() if not math.isnan(x)}


def of_agreement(
    weights: Tensor, agreement: Tensor, products: Mapping[str, float], importance: Tensor
) -> dict[str, float]:
    """Return the shares that disagree, and the terms of <J_k, J_1> = E[w] |J_1|^2 + cov(w, a).

    The shares are those of the prompts and of their weight. `products` come from `of_products`. The
    covariance is the measured product minus the first term: w and a of one prompt come from the
    same verdicts, so the covariance of their estimates would be biased.
    """
    negative = (agreement < 0).to(weights)
    mean_weight = mean(weights, importance)
    mean_weight_term = mean_weight * products["norm_1_squared"]
    disagreeing = mean(weights * negative, importance)
    return {
        "negative_share": mean(negative, importance),
        "negative_weight_share": disagreeing / mean_weight if mean_weight > 0 else 0.0,
        "mean_weight_term": mean_weight_term,
        "covariance_term": products["dot"] - mean_weight_term,
    }
