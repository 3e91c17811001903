"""What changes with the step: pure functions of it, counted from 1, so that resuming needs no
state.
"""

import math

from trainers.config import parse_schedule
from trainers.schema import Config


def learning_rate(config: Config, step: int) -> float:
    """Linear warm-up over train.warmup_steps, then train.schedule: a pure function of the step,
    from 1.
    """
    train = config.train
    if step <= train.warmup_steps:
        return train.lr * step / train.warmup_steps
    done = (step - 1 - train.warmup_steps) / max(1, train.steps - train.warmup_steps)
    factor = {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}
    return train.lr * factor[train.schedule]


def k_at(config: Config, step: int) -> int:
    """objective.k, or what objective.k_schedule says from this step on."""
    k = config.objective.k
    for start, later in parse_schedule(config.objective.k_schedule):
        k = later if step >= start else k
    return k


def due(step: int, every: int) -> bool:
    """Whether something of this period, 0 for never, falls on the step."""
    return every > 0 and step % every == 0
