"""One step's batch, from its prompts to its update: what the stages of a step hand to each other.

It stands above the rooms because `measure` reads it and `train` fills it.
"""

from dataclasses import dataclass, field

from torch import Tensor

from eval.rollout.rollout import Rollout
from eval.tasks.task import Problem
from surgery.geometry import Geometry
from surgery.rules import Decision


@dataclass(eq=False, repr=False)
class StepBatch:
    """A batch that the stages fill in this order; reading a field before its stage is an error.

    N prompts with n samples each; `mine` are this rank's prompts, and only `rollout`, `verdicts`
    and `applied` are of those alone. All else is the same on every rank.
    """

    # prompts
    step: int
    seed: int  # of the random stream that draws the completions
    k: int  # objective.k of this step
    weight_k: int  # the same, or 1 under an estimator that has an objective of its own
    problems: list[Problem]
    mine: range

    # sample
    rollout: Rollout = field(init=False)

    # verify
    verdicts: list[bool | None] = field(init=False)  # None: undecided
    correct: Tensor = field(init=False)  # [N, n] in float64, as are the next five
    undecided: Tensor = field(init=False)
    entropy: Tensor = field(init=False)  # mean over the completion's tokens
    logprob: Tensor = field(init=False)  # of the completion
    length: Tensor = field(init=False)
    truncated: Tensor = field(init=False)

    # estimate
    a_k: Tensor = field(init=False)  # [N, n] advantages of pass@k
    a_1: Tensor = field(init=False)  # [N, n] advantages of pass@1
    weights: Tensor = field(init=False)  # [N] unbiased estimates of w_k

    # measure
    realised: float | None = field(init=False)  # <J_1, the watched step>; None: none was watched
    geometry: Geometry = field(init=False)
    measured: dict[str, float] = field(init=False)  # the probe's scalars; empty without a measure

    # decide
    decision: Decision = field(init=False)
    advantages: Tensor = field(init=False)  # [N, n] of the rewards, after the rule
    drift: float | None = field(init=False)  # mean KL to the base; None: not looked at
    applied: Tensor = field(init=False)  # [mine, n] or [mine, n, columns] weights of the backward

    # update
    lr: float = field(init=False)
    loss: float = field(init=False)  # of the first update
    norms: list[float | None] = field(init=False)  # each update's gradient; None: not finite

    seconds: dict[str, float] = field(init=False)  # of the stages, and of all as "step"
