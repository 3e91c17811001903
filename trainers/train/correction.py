"""The distribution that served a rollout: its distance from the policy, and its correction."""

import torch
from torch import Tensor

from eval.rollout.rollout import Rollout
from surgery.tokens import importance
from trainers.config.schema import RolloutConfig
from trainers.engine.ranks import Ranks


def corrected(weights: Tensor, rollout: Rollout, options: RolloutConfig) -> Tensor:
    """Return the weights of the backward times the importance of each token, if configured.

    `weights` are [prompts, n] or [prompts, n, columns]; with a correction, the result has columns.
    """
    if rollout.mismatch is None or options.correction == "none":
        return weights
    factors = importance(rollout.mismatch, options.cap).view(*weights.shape[:2], -1)
    return (weights[..., None] if weights.dim() == 2 else weights) * factors


def of_mismatch(rollout: Rollout, options: RolloutConfig, ranks: Ranks) -> dict[str, float]:
    """Return the scalars of the distribution that served, over all ranks; none if none served."""
    if rollout.mismatch is None:
        return {}
    inside = torch.arange(rollout.mismatch.shape[1]) < rollout.lengths[:, None]
    difference = rollout.mismatch[inside].double()
    ratio, weight = difference.exp(), importance(difference, options.cap)
    sums = [torch.ones_like(ratio), difference.abs(), weight, (ratio > options.cap).double()]
    count, distance, total, cut = ranks.reduce(torch.stack([x.sum() for x in sums])).tolist()
    tops = torch.stack([difference.abs().max(), weight.max()])
    farthest, largest = ranks.reduce(tops, "max").tolist()
    scalars = {"mismatch_mean": distance / count, "mismatch_max": farthest}
    if options.correction == "truncate":
        scalars |= {"weight_mean": total / count, "weight_max": largest}
        scalars["weights_truncated"] = cut / count
    return {f"rollout/{name}": x for name, x in scalars.items()}
