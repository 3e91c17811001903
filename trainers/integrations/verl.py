"""The estimators and rules of this project as advantage estimators of verl.

verl loads this file by itself where this project is installed beside it. One line of configuration
then chooses an estimator of surgery/estimators.py as surgery_<name>; the sections `objective` and
`surgery` below `algorithm` hold settings as launch/train.py names them:

    algorithm.adv_estimator=surgery_loo +algorithm.objective.k=8 +algorithm.surgery.rule=mix

An estimator of verl sees rewards and no gradients, so the rules are those that measure nothing.
"""

import logging
from collections import Counter
from typing import Any

from omegaconf import OmegaConf
from torch import Tensor
from verl.trainer.ppo.core_algos import register_adv_est

from surgery.estimators import ESTIMATORS
from trainers.config.values import ConfigError
from trainers.integrations.groups import Groups
from trainers.integrations.settings import settings


class Advantages:
    """An estimator as verl calls it; its state lasts as long as the process."""

    def __init__(self, estimator: str):
        self.estimator = estimator
        self.groups: Groups | None = None

    def __call__(
        self,
        token_level_rewards: Tensor,
        response_mask: Tensor,
        index: Any,
        config: Any = None,
        **unused: Any,
    ) -> tuple[Tensor, Tensor]:
        """Return advantages and returns [rows, tokens]; `index` [rows] names each row's prompt."""
        prompts = list(index)
        if self.groups is None:
            self.groups = self._made(config, prompts)
        rewards = token_level_rewards.sum(-1)
        advantages = self.groups(rewards.cpu(), prompts).to(rewards)
        by_token = advantages[:, None] * response_mask
        return by_token, by_token

    def _made(self, config: Any, prompts: list[Any]) -> Groups:
        """Return the groups with the settings that verl's configuration holds."""
        objective, surgery = (section(config, name) for name in ("objective", "surgery"))
        if "estimator" in objective:
            why = f"algorithm.adv_estimator=surgery_{self.estimator} names it; remove it"
            raise ConfigError(f"objective.estimator = {objective['estimator']}: {why}")
        objective["estimator"] = self.estimator
        counts = Counter(prompts)
        least, name = min(counts.values()), "rollout.n"
        groups = Groups(settings(objective, surgery, least, len(counts), name))
        if groups.config.surgery.rule == "floor" or groups.config.objective.k_schedule:
            logging.getLogger(__name__).warning(
                "floor and k_schedule count from here: checkpoints of verl do not hold their state"
            )
        return groups


def section(config: Any, name: str) -> dict[str, Any]:
    """Return a section below verl's `algorithm`, empty if it is not there."""
    content = None if config is None else config.get(name)
    return dict(OmegaConf.to_container(OmegaConf.create(content or {})))  # type: ignore[arg-type]


for name in ESTIMATORS:
    register_adv_est(f"surgery_{name}")(Advantages(name))
