"""The choice of the best checkpoint of a run, which is kept beside the newest ones."""

import math
from collections.abc import Mapping
from typing import Any

from trainers.config.schema import TrainConfig
from trainers.config.values import parse_constraint


class Best:
    """The step with the highest train.best_metric among steps that meet train.best_constraint."""

    def __init__(self, train: TrainConfig):
        self.train = train
        self.held: dict[str, Any] | None = None  # step, metric, value, as in best.json

    @property
    def step(self) -> int | None:
        return self.held["step"] if self.held else None

    def takes(self, step: int, scalars: Mapping[str, float]) -> bool:
        """Keep this step if it is better than the kept one; return whether it was better."""
        value = scalars.get(self.train.best_metric)
        if self.train.best_constraint:
            name, bound = parse_constraint(self.train.best_constraint)
            value = value if scalars.get(name, -math.inf) >= bound else None
        if value is None or (self.held and value <= self.held["value"]):
            return False
        self.held = {"step": step, "metric": self.train.best_metric, "value": value}
        return True
