"""Surgery for a trainer that samples, judges and updates by itself."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from eval.errors import Refusal
from eval.rollout.rollout import Rollout
from eval.scores.passk import ladder
from surgery import diagnostics
from surgery.estimators import ESTIMATORS, OF_PASS_AT_K, rloo
from surgery.geometry import Geometry
from surgery.objectives import prompt_weight, rho
from surgery.rules import State, apply, find_rule
from surgery.user_code import own_settings
from trainers.config.schema import Config
from trainers.engine.ranks import Ranks
from trainers.measure.probe import Probe
from trainers.step_batch import StepBatch
from trainers.train.schedules import k_at


def weight_k(config: Config, k: int) -> int:
    """Return the k of the prompt weights: 1 for an estimator that ascends another objective."""
    return k if config.objective.estimator in OF_PASS_AT_K else 1


def estimated(config: Config, correct: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the advantages of pass@k and pass@1 [N, n], and the weights w_k [N]."""
    estimator = ESTIMATORS[config.objective.estimator]
    a_k = estimator(correct, k, **own_settings(estimator, vars(config.objective)))
    weights = prompt_weight(correct.shape[1], correct.sum(1), weight_k(config, k))
    return a_k, rloo(correct), weights


def verdicts(rewards: Tensor) -> Tensor:
    """Return the rewards; refuse any other than 1, for a right completion, and 0."""
    wrong = rewards[(rewards != 0) & (rewards != 1)]
    if len(wrong):
        why = "pass@k needs verdicts; let the rewards of a completion add up to 1.0 or 0.0"
        raise Refusal(f"reward = {wrong[0].item():g}: {why}")
    return rewards


class Gathered(Ranks):
    """The ranks of a batch that every process holds completely: one rank with all rows."""

    def __init__(self) -> None:
        self.rank, self.world, self.device = 0, 1, torch.device("cpu")


class Surgeon:
    """Estimate, measure and decide, as in a step of launch/train.py; the state between steps."""

    def __init__(self, config: Config):
        self.config, surgery = config, config.surgery
        rule = find_rule(surgery.rule)
        self.rule = rule.bind({**vars(surgery), **surgery.options}, config.train.samples)
        # `last_layer` asks an engine for the rows of all ranks, and for nothing else
        self.probe = Probe(config, Gathered(), rule.needs)  # type: ignore[arg-type]
        self.rule_state: State = {}
        self.fastest = 0.0  # the highest learning rate so far

    def __call__(
        self, step: int, correct: Tensor, features: Callable[[], Tensor], rate: float = 1.0
    ) -> tuple[Tensor, dict[str, float]]:
        """Return the advantages [N, n] of a step's verdicts [N, n], and its scalars.

        Steps count from 1. `features` returns features [N n, width] and is called if the step
        measures. `rate` is the learning rate of the step; the pace of rules is its share of the
        highest so far, so 1 in a warm-up, whoever made the schedule. The update is the sum of
        advantage * grad log pi over all completions, divided by N. A measurement that is not finite
        gives advantages of 0: this batch then trains nothing.
        """
        self.fastest = max(self.fastest, rate)
        pace = rate / self.fastest if self.fastest > 0 else 1.0
        batch = self._estimated(step, correct.double().cpu(), pace)
        self.probe.begin(batch.weight_k)
        if self.probe.due(step):
            batch.rollout = _with_features(features(), correct.shape[1])
            batch.geometry, batch.measured = self.probe(batch)
        else:
            batch.geometry = Geometry(batch.correct.mean(1), self.probe.products, pace=pace)
            batch.measured = {}
        batch.decision = self.rule(batch.weights, batch.geometry, self.rule_state)
        advantages = apply(batch.decision, batch.a_k, batch.a_1)
        usable = bool(advantages.isfinite().all())
        scalars = {"surgery/skipped": float(not usable), "surgery/k": float(batch.k)}
        scalars |= of_surgery(batch) if usable else {}
        return advantages if usable else torch.zeros_like(advantages), scalars

    def _estimated(self, step: int, correct: Tensor, pace: float) -> StepBatch:
        """Return the batch of a step as far as its verdicts determine it."""
        k = k_at(self.config, step)
        ones, mine = torch.ones(len(correct), dtype=torch.float64), range(len(correct))
        batch = StepBatch(step, 0, k, weight_k(self.config, k), pace, [], ones, mine)
        batch.correct, batch.change = correct, None  # the rule compares with the first batch
        batch.a_k, batch.a_1, batch.weights = estimated(self.config, correct, k)
        return batch

    def state(self) -> dict[str, Any]:
        """Return the numbers that a checkpoint must carry."""
        numbers = {"rule_state": self.rule_state, "fastest": self.fastest}
        return numbers | {"probe": self.probe.state()[0]}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.rule_state, self.fastest = dict(state["rule_state"]), state["fastest"]
        self.probe.restore(state["probe"], {})


def _with_features(features: Tensor, n: int) -> Rollout:
    """Return a rollout that has only features."""
    unknown = torch.empty(0)
    return Rollout([], [], [], unknown, unknown, unknown, features, n)


def of_surgery(batch: StepBatch) -> dict[str, float]:
    """Return the scalars of a decided batch, by the names of launch/train.py."""
    scalars, agreement = dict(batch.measured), batch.geometry.agreement
    if agreement is not None:
        scalars |= diagnostics.of_agreement(batch.weights, agreement, scalars, batch.importance)
    scalars |= diagnostics.of_decision(batch.weights, batch.decision, batch.importance)
    return {f"surgery/{name}": x for name, x in scalars.items()}


def rates(correct: Tensor, k: int) -> dict[str, float]:
    """Return the mean pass@1, pass@2, .. up to pass@k, or to pass@n, of verdicts [N, n]."""
    n, counts = correct.shape[1], correct.double().cpu().sum(1)
    return {f"pass@{j}": float(rho(n, counts, j).mean()) for j in ladder(min(k, n))}
