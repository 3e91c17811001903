"""Advantages of groups of any size, for a trainer that shows rewards and no gradients."""

from collections import defaultdict
from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from surgery.geometry import Geometry
from surgery.rules import State, apply, find_rule, per_prompt
from trainers.config.schema import Config
from trainers.config.values import ConfigError
from trainers.integrations.surgeon import estimated, verdicts
from trainers.train.schedules import k_at


class Groups:
    """Estimate and decide, by a rule that measures nothing; the state between batches."""

    def __init__(self, config: Config):
        self.config, surgery = config, config.surgery
        rule = find_rule(surgery.rule)
        if rule.needs:
            why = "measures gradients, which are not known here; set none, mix or floor"
            raise ConfigError(f"surgery.rule = {surgery.rule}: {why}")
        self.rule = rule.bind({**vars(surgery), **surgery.options})
        self.rule_state: State = {}
        self.step = 0

    def __call__(self, rewards: Tensor, prompts: Sequence[Hashable]) -> Tensor:
        """Return the advantage of each completion [rows], from its reward and its prompt.

        The mean over completions of advantage * grad log pi is the update: the mean over prompts of
        the sums that launch/train.py takes.
        """
        self.step += 1
        k, correct = k_at(self.config, self.step), verdicts(rewards).double()
        rows = equal_sizes(prompts)
        parts = [estimated(self.config, correct[x], k) for x in rows]
        weights = torch.cat([x for _, _, x in parts])
        rate = torch.cat([correct[x].mean(1) for x in rows])
        alpha, beta = per_prompt(self.rule(weights, Geometry(rate), self.rule_state))
        sizes = [len(x) for x in rows]
        advantages = torch.zeros_like(correct)
        shares = zip(rows, alpha.split(sizes), beta.split(sizes), parts, strict=True)
        for places, on_k, on_1, (a_k, a_1, _) in shares:
            advantages[places] = apply((on_k, on_1), a_k, a_1)
        return advantages * len(correct) / len(weights)


def equal_sizes(prompts: Sequence[Hashable]) -> list[Tensor]:
    """Return the rows of the prompts as tensors [prompts, n], one for each size n of a group."""
    groups: defaultdict[Hashable, list[int]] = defaultdict(list)
    for row, prompt in enumerate(prompts):
        groups[prompt].append(row)
    sizes: defaultdict[int, list[list[int]]] = defaultdict(list)
    for rows in groups.values():
        sizes[len(rows)].append(rows)
    return [torch.tensor(sizes[n]) for n in sorted(sizes)]
