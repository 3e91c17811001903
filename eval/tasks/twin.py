"""`twin`: two families of similar prompts with opposite answers, and exact pass@k.

A prompt such as ``D3?4=`` shows a cue letter, two operands 2..9 and an operator sign whose meaning
is hidden: easy prompts mean the sum, hard ones the product. The cue is a noisy hint at the meaning,
so a policy can only guess. The task is the two-dimensional example of arXiv 2602.21189, section 3,
in a real causal language model. Its pass@k is known without sampling.
"""

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from eval.policy.logprobs import Rows, answer_batch, answers_logprobs
from eval.policy.policy import Policy
from eval.tasks.embedded import cue_given_group, llama_config
from eval.tasks.task import Population, Problem, Task
from eval.tasks.twin_base import (
    CUES,
    OPERANDS,
    TwinRecipe,
    base_folder,
    make_tokenizer,
    prompt_text,
)
from surgery.objectives import pass_at_k, pass_at_k_weight

if TYPE_CHECKING:
    from transformers import PretrainedConfig


@dataclass
class Twin(Task):
    """Two families of similar prompts with opposite answers; pass@k is known exactly.

    `delta` is the distance of the cue's mean between easy and hard, `hard_share` the share of hard
    prompts.
    """

    delta: float = 2.0
    hard_share: float = 0.3
    base_bias: float = 0.12
    base_seed: int = 0
    # the population, tokenised once
    _teacher: Rows | None = field(default=None, init=False, repr=False)

    # a symbolic verifier would accept "07" or "3+4", and the policy would learn to write them
    verifier = "exact"
    max_new_tokens = 4

    @cached_property
    def cue_given_group(self) -> Tensor:
        """P(cue | easy) and P(cue | hard), [2, cues]."""
        return cue_given_group(self.delta, len(CUES))

    @cached_property
    def cue_and_group(self) -> Tensor:
        """The joint probabilities [2, cues]; rows easy, hard."""
        share = torch.tensor([[1 - self.hard_share], [self.hard_share]], dtype=torch.float64)
        return share * self.cue_given_group

    @cached_property
    def population(self) -> list[Problem]:
        """All prompts with both meanings, by cue, then operands, then easy before hard."""
        problems = []
        for cue in CUES:
            for a, b in OPERANDS:
                prompt = prompt_text(cue, a, b)
                for group, gold in (("easy", a + b), ("hard", a * b)):
                    problems.append(Problem(f"{prompt}{gold}", prompt, str(gold), group))
        return problems

    @cached_property
    def shares(self) -> Tensor:
        """The probability of each member of the population."""
        joint = self.cue_and_group.T[:, None, :].expand(-1, len(OPERANDS), -1) / len(OPERANDS)
        return joint.reshape(-1)

    def _draw(self, count: int, generator: torch.Generator) -> list[Problem]:
        picks = torch.multinomial(self.shares, count, replacement=True, generator=generator)
        problems = [self.population[i] for i in picks.tolist()]
        return [
            Problem(f"{i:04d}:{x.id}", x.prompt, x.gold, x.group) for i, x in enumerate(problems)
        ]

    def training(self, seed: int, step: int, count: int) -> list[Problem]:
        # not by `derive_seed`: all published results of this task come from these draws
        return self._draw(count, torch.Generator().manual_seed(seed * 1_000_003 + step))

    def evaluation(self, count: int) -> list[Problem]:
        return self._draw(count, torch.Generator().manual_seed(2**40))

    @property
    def recipe(self) -> TwinRecipe:
        return TwinRecipe(bias=self.base_bias, seed=self.base_seed)

    def base_model(self) -> str:
        return base_folder(self.recipe)

    def base_config(self) -> "PretrainedConfig":
        return llama_config(self.recipe, make_tokenizer())

    def success(self, policy: Policy, temperature: float = 1.0) -> Population:
        """Return p = pi(answer, end of text | prompt) of all 630 prompts with both answers."""
        if self._teacher is None:
            prompts, golds = zip(*((x.prompt, x.gold) for x in self.population), strict=True)
            self._teacher = answer_batch(policy, prompts, golds)
        logp = answers_logprobs(policy.model, self._teacher, 2, temperature).sum(1)
        return Population(logp.double().cpu().exp(), self.shares, self._index)

    @cached_property
    def _index(self) -> dict[tuple[str, str], int]:
        return {(x.prompt, x.gold): i for i, x in enumerate(self.population)}

    def frontier_share(
        self, before: tuple[float, float], after: tuple[float, float], k: int
    ) -> float | None:
        """Return 1/t*, t* the largest t for which before + t (after - before) is reachable.

        Return None if either value fell.
        """
        step = (after[0] - before[0], after[1] - before[1])
        if min(step) < 0 or max(step) <= 0:
            return None
        w = torch.linspace(0, 1, 2001, dtype=torch.float64)
        # the reachable set is convex, so it is the set below its supporting lines
        # w J_1 + (1-w) J_k = height
        j_1, j_k = _best(self.cue_and_group, w, k)
        height = w * j_1 + (1 - w) * j_k
        slope = w * step[0] + (1 - w) * step[1]
        room = height - w * before[0] - (1 - w) * before[1]
        t = float((room / slope)[slope > 0].min())
        return 1 / t if t > 0 else math.inf

    def frontier(self, k: int, points: int = 101) -> list[tuple[float, float]]:
        """Return (pass@1, pass@k) along the best trade-off over all policies of the cue."""
        j_1, j_k = _best(self.cue_and_group, torch.linspace(0, 1, points, dtype=torch.float64), k)
        return list(zip(j_1.tolist(), j_k.tolist(), strict=True))


def _best(joint: Tensor, w: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return (J_1, J_k) of the policies of the cue that maximise w J_1 + (1-w) J_k, for each w.

    For each cue such a policy answers the sum with probability q and the product otherwise. The
    objective is concave in q; its derivative, easy (w + (1-w) w_k(q)) - hard (w + (1-w) w_k(1-q)),
    falls, so bisection gives its zero.
    """
    easy, hard = joint
    w = w[:, None]
    low, high = torch.zeros(len(w), len(easy)).double(), torch.ones(len(w), len(easy)).double()
    for _ in range(60):
        q = (low + high) / 2
        rising = easy * (w + (1 - w) * pass_at_k_weight(q, k)) > hard * (
            w + (1 - w) * pass_at_k_weight(1 - q, k)
        )
        low, high = torch.where(rising, q, low), torch.where(rising, high, q)
    q = (low + high) / 2
    return q @ easy + (1 - q) @ hard, pass_at_k(q, k) @ easy + pass_at_k(1 - q, k) @ hard
