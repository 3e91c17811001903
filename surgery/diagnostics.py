"""What a step says about interference, by name."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from surgery.geometry import Products
from surgery.rules import Decision, per_prompt


def of_decision(weights: Tensor, decision: Decision) -> dict[str, float]:
    """The rule's lambda, mean beta over mean alpha; E[w], the mean weight of pass@k before the
    rule; and how evenly the applied weights are spread.
    """
    alpha, beta = per_prompt(decision)
    applied = alpha * weights + beta
    on_k, on_1 = float(alpha.mean()), float(beta.mean())
    total, squares = float(applied.sum()), float(applied.square().sum())
    size = total**2 / (squares * len(weights)) if squares > 0 else 0.0
    found = {"effective_sample_size": size}  # as a share of the prompts
    found["mean_weight"] = float(weights.mean())
    return found | {"lambda": on_1 / on_k} if on_k > 0 else found


def of_products(now: Products, naive: Products | None, decisive: Products) -> dict[str, float]:
    """Cosine and ratio of J_k to J_1: of this batch, naive, and smoothed as the rule sees them; and
    the smoothed lengths of both.

    An unbiased Gram of one batch need not be PSD: its cosine is clipped, and 0 where a norm is not
    positive. What was not measured is left out.
    """
    found = {"conflict": float(now.dot < 0), "conflict_smoothed": float(decisive.dot < 0)}
    found |= {"dot": now.dot, "norm_1_squared": now.norm_1}
    for name, x in (("", now), ("_naive", naive), ("_smoothed", decisive)):
        if x is not None:
            found[f"cosine{name}"] = x.cosine
            found[f"ratio{name}"] = x.dot / x.norm_1 if x.norm_1 > 0 else math.nan
    found["length_1"] = math.sqrt(max(decisive.norm_1, 0.0))
    if decisive.norm_k >= 0:  # it was measured
        found["length_k"] = math.sqrt(decisive.norm_k)
        if decisive.norm_1 > 0:
            found["length_ratio"] = found["length_k"] / found["length_1"]
    return {name: x for name, x in found.items() if not math.isnan(x)}


def of_agreement(
    weights: Tensor, agreement: Tensor, products: Mapping[str, float]
) -> dict[str, float]:
    """Shares of prompts and of weight that disagree, and <J_k, J_1> = E[w] |J_1|^2 + cov(w, a).

    `products` are those of `of_products`. The covariance is what is left of the measured product: w
    and a of one prompt come from the same
    verdicts, so the covariance of their estimates would not be it.
    """
    negative = (agreement < 0).to(weights)
    total = weights.sum().clamp(min=torch.finfo(weights.dtype).tiny)
    mean_weight_term = float(weights.mean()) * products["norm_1_squared"]
    return {
        "negative_share": float(negative.mean()),
        "negative_weight_share": float(weights @ negative / total),
        "mean_weight_term": mean_weight_term,
        "covariance_term": products["dot"] - mean_weight_term,
    }
