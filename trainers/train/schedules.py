"""Schedules: pure functions of the step, counted from 1, so that resuming needs no state."""

import math

from trainers.config.schema import Config
from trainers.config.values import parse_schedule


def learning_rate(config: Config, step: int) -> float:
    """Return the learning rate: linear warm-up over train.warmup_steps, then train.schedule.

    The default warm-up is long because Adam's first steps are as long in noise as in signal, and
    because the conflict with pass@1 is at its worst before anything has been measured.
    """
    warmup = _warmup(config)
    rising = step / warmup if step <= warmup else 1.0
    return config.train.lr * rising * pace(config, step)


def pace(config: Config, step: int) -> float:
    """Return the learning rate over its peak, 1 in the warm-up."""
    train, warmup = config.train, _warmup(config)
    done = max(0, step - 1 - warmup) / max(1, train.steps - warmup)
    factor = {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}
    return factor[train.schedule]


def _warmup(config: Config) -> int:
    train = config.train
    return train.steps // 3 if train.warmup_steps is None else train.warmup_steps


def k_at(config: Config, step: int) -> int:
    """Return the k of this step: objective.k, or the k of objective.k_schedule."""
    k = config.objective.k
    for start, later in parse_schedule(config.objective.k_schedule):
        k = later if step >= start else k
    return k


def due(step: int, every: int) -> bool:
    """Return whether an event of this period (0: never) falls on the step."""
    return every > 0 and step % every == 0
