"""The batch of one step, which each stage of the step fills and hands to the next.

The module stands beside the folders because `measure` reads the batch and `train` fills it.
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

    It has N prompts with n samples each. `mine` are this rank's prompts. `rollout`, `verdicts` and
    `applied` hold values of these prompts only; all other fields are the same on every rank.
    """

    # prompts
    step: int
    seed: int  # seed of the random stream that draws the completions
    k: int  # objective.k of this step
    weight_k: int  # equals k, or 1 under an estimator that has an objective of its own
    pace: float  # learning rate over its peak, 1 in the warm-up
    problems: list[Problem]
    importance: Tensor  # [N] how many of the task's problems a prompt stands for, 1 on average
    mine: range

    # sample
    rollout: Rollout = field(init=False)
    served: dict[str, float] = field(init=False)  # scalars of servers; empty: the policy sampled

    # verify
    verdicts: list[bool | None] = field(init=False)  # None: undecided
    correct: Tensor = field(init=False)  # [N, n] in float64, like the next five
    undecided: Tensor = field(init=False)
    entropy: Tensor = field(init=False)  # mean over the completion's tokens
    logprob: Tensor = field(init=False)  # log-probability of the completion
    length: Tensor = field(init=False)
    truncated: Tensor = field(init=False)

    # hold
    # of pass@1 since the base, on the prompts that are held; None: unknown
    change: float | None = field(init=False)

    # estimate
    # [N, n] advantages of pass@k and of pass@1, times the importance
    a_k: Tensor = field(init=False)
    a_1: Tensor = field(init=False)
    weights: Tensor = field(init=False)  # [N] unbiased estimates of w_k

    # measure
    realised: float | None = field(init=False)  # <J_1, watched step>; None: no step was watched
    geometry: Geometry = field(init=False)
    measured: dict[str, float] = field(init=False)  # the probe's scalars; empty without a measure

    # decide
    decision: Decision = field(init=False)
    advantages: Tensor = field(init=False)  # [N, n] advantages of the rewards, after the rule
    drift: float | None = field(init=False)  # mean KL to the base; None: not estimated
    applied: Tensor = field(init=False)  # [mine, n] or [mine, n, columns] weights of the backward

    # update
    lr: float = field(init=False)
    loss: float = field(init=False)  # loss of the first update
    norms: list[float | None] = field(init=False)  # gradient norm per update; None: not finite

    seconds: dict[str, float] = field(init=False)  # seconds per stage; "step" is their total
