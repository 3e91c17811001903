"""The log of a step: pure functions of its batch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from surgery import diagnostics
from surgery.objectives import rho
from surgery.rules import per_prompt
from trainers.step_batch import StepBatch

LOOKS = 4  # prompts per entry of rollouts.jsonl


@dataclass
class StepLog:
    """The numbers of a step that are kept after its batch is freed."""

    step: int
    scalars: dict[str, float]  # by their TensorBoard names
    weights: Tensor  # [N] weights of pass@k, before the rule
    rate: Tensor  # [N] share of correct answers
    agreement: Tensor | None  # [N] agreement with the pass@1 gradient; None: not measured
    looks: list[dict[str, Any]]  # lines of rollouts.jsonl


def log_of(batch: StepBatch, ks: Sequence[int]) -> StepLog:
    """Return the log of a batch, with its pass@k for each of `ks`."""
    geometry = batch.geometry
    scalars = {
        **_of_rollouts(batch, ks),
        **batch.served,
        **_of_update(batch),
        **{f"surgery/{name}": x for name, x in _of_surgery(batch).items()},
    }
    if batch.drift is not None:
        scalars["train/kl_to_base"] = batch.drift
    scalars |= _of_time(batch.seconds, batch.length)
    looks = looks_of(batch)
    return StepLog(batch.step, scalars, batch.weights, geometry.rate, geometry.agreement, looks)


def _of_rollouts(batch: StepBatch, ks: Sequence[int]) -> dict[str, float]:
    n, counts = batch.correct.shape[1], batch.correct.sum(1)
    alpha, beta = per_prompt(batch.decision)
    applied = batch.importance * (alpha * batch.weights + beta)

    def mean(x: Tensor) -> float:
        return diagnostics.mean(x if x.ndim == 1 else x.mean(1), batch.importance)

    return {
        **{f"train/pass@{k}": mean(rho(n, counts, k)) for k in ks},
        "train/entropy": mean(batch.entropy),
        "train/sequence_entropy": -mean(batch.logprob),
        "train/length": mean(batch.length),
        "train/truncated_share": mean(batch.truncated),
        "train/undecided_share": mean(batch.undecided),
        "train/unsolved_share": mean((counts == 0).double()),
        "train/largest_importance": float(batch.importance.max()),
        "train/no_signal_share": float((batch.advantages == 0).all(1).double().mean()),
        "train/mean_weight": float(applied.mean()),
        "train/largest_weight_share": float(applied.max() / applied.sum().clamp(min=1e-300)),
    }


def _of_update(batch: StepBatch) -> dict[str, float]:
    norms = batch.norms
    return {
        "train/loss": batch.loss,
        **({} if norms[0] is None else {"train/grad_norm": norms[0]}),
        "train/skipped": norms.count(None) / len(norms),
        "train/lr": batch.lr,
        "train/k": batch.k,
    }


def _of_surgery(batch: StepBatch) -> dict[str, float]:
    scalars, agreement = dict(batch.measured), batch.geometry.agreement
    if agreement is not None:
        weights, importance = batch.weights, batch.importance
        scalars |= diagnostics.of_agreement(weights, agreement, scalars, importance)
    if batch.realised is not None:
        scalars["realised"] = batch.realised
    if batch.change is not None:
        scalars["change_to_base"] = batch.change
    return scalars | diagnostics.of_decision(batch.weights, batch.decision, batch.importance)


def _of_time(seconds: Mapping[str, float], lengths: Tensor) -> dict[str, float]:
    return {
        **{f"time/{part}": x for part, x in seconds.items()},
        "throughput/completions_per_second": lengths.numel() / seconds["step"],
        "throughput/tokens_per_second": float(lengths.sum()) / seconds["step"],
    }


def looks_of(batch: StepBatch) -> list[dict[str, Any]]:
    """Return the first prompts of this rank with their responses, verdicts and weights."""
    looks, rollout, agreement = [], batch.rollout, batch.geometry.agreement
    for place, i in enumerate(batch.mine[:LOOKS]):
        problem, rows = batch.problems[i], slice(place * rollout.n, (place + 1) * rollout.n)
        looks.append(
            {
                "step": batch.step,
                "seed": batch.seed,
                "place": i,
                "id": problem.id,
                "prompt": problem.prompt,
                "gold": problem.gold,
                "texts": rollout.texts[rows],
                "verdicts": batch.verdicts[rows],
                "weight": float(batch.weights[i]),
                "agreement": None if agreement is None else float(agreement[i]),
            }
        )
    return looks
