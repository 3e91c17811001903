"""The problems of each step: as the task gives them, or chosen by their expected signal.

A prompt that the policy always or never solves gives no gradient. With `train.sampler=informative`
the task gives some candidates for each prompt of the batch. One of them is chosen with probability
q and gets the importance 1/(candidates q). All gradients are then unbiased for the task's own
distribution, and the prompts of a batch stay independent of each other.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from eval.policy.streams import derive_seed
from eval.tasks.task import Problem, Task, name_of
from surgery.estimators import rloo
from surgery.rules import per_prompt
from trainers.config.schema import Config
from trainers.step_batch import StepBatch

Advantages = Callable[[Tensor], Tensor]  # of verdicts [N, n]

PRIOR = 2.0  # answers that the rate of a problem's stratum is worth beside the problem's own
KNOWN = 8.0  # answers that a recorded rate of the base is worth


class Prompts:
    """The problems of each step with their importance, and the memory of their answers."""

    def __init__(self, task: Task, config: Config):
        self.task, self.config = task, config
        self.history = History(config.train.history_decay)
        self.shares = [1.0, 1.0]  # the rule's last mean weights of pass@k and of pass@1

    def draw(self, step: int, estimator: Advantages) -> tuple[list[Problem], Tensor]:
        """Return the problems of this step and the importance [N] of each, 1 if uniform."""
        train, seed = self.config.train, self.config.seed
        if train.sampler == "uniform":
            problems = self.task.training(seed, step, train.prompts)
            return problems, torch.ones(len(problems), dtype=torch.float64)
        candidates = self.task.training(seed, step, train.prompts * train.candidates)
        on_k, on_1 = self.shares
        squares = signal(lambda f: on_k * estimator(f) + on_1 * rloo(f), train.samples)
        scores = expected_signal(*self.history.beta(self.task, candidates, step), squares)
        dice = torch.Generator().manual_seed(derive_seed(seed, "choice", step))
        rows = scores.view(train.prompts, train.candidates)
        chosen, importance = choose(rows, train.uniform_share, dice)
        places = torch.arange(train.prompts) * train.candidates + chosen
        return [candidates[i] for i in places.tolist()], importance

    def learn(self, batch: StepBatch) -> None:
        """Remember the answers of a step, and how the rule weighed the two objectives."""
        if self.config.train.sampler == "uniform":
            return
        self.history.add(batch.problems, batch.correct, batch.importance, batch.step)
        shares = [float(x.mean()) for x in per_prompt(batch.decision)]
        self.shares = shares if all(map(math.isfinite, shares)) else self.shares

    def state(self) -> dict[str, Any]:
        return {"history": self.history.counts, "shares": self.shares}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.history.counts, self.shares = state["history"], state["shares"]


@dataclass
class History:
    """Right answers and all answers by problem and by stratum; older steps count less.

    An answer counts decay^age, its age in steps. Every rank has the same history.
    """

    decay: float
    counts: dict[str, list[float]] = field(default_factory=dict)  # right, all, step of the last

    def beta(self, task: Task, problems: Sequence[Problem], step: int) -> tuple[Tensor, Tensor]:
        """Return the parameters of a Beta distribution of each problem's success rate."""
        pairs = []
        for x in problems:
            right, total = self._at(_own(x), step) or self._begun(task, x)
            wide = self._at(_stratum(x), step) or (0.0, 0.0)
            prior = (wide[0] + 1) / (wide[1] + 2)
            pairs.append((right + PRIOR * prior, total - right + PRIOR * (1 - prior)))
        a, b = torch.tensor(pairs, dtype=torch.float64).T
        return a, b

    def add(
        self, problems: Sequence[Problem], correct: Tensor, importance: Tensor, step: int
    ) -> None:
        """Add the verdicts [N, n] of a step; in a stratum a prompt counts by its importance."""
        n, rows = correct.shape[1], zip(correct.sum(1).tolist(), importance.tolist(), strict=True)
        for x, (right, v) in zip(problems, rows, strict=True):
            self._count(_own(x), right, n, step)
            self._count(_stratum(x), v * right, v * n, step)

    def _count(self, name: str, right: float, count: float, step: int) -> None:
        before, total = self._at(name, step) or (0.0, 0.0)
        self.counts[name] = [before + right, total + count, step]

    def _at(self, name: str, step: int) -> tuple[float, float] | None:
        if name not in self.counts:
            return None
        right, total, last = self.counts[name]
        fade = self.decay ** (step - last)
        return right * fade, total * fade

    @staticmethod
    def _begun(task: Task, problem: Problem) -> tuple[float, float]:
        rate = task.base_rate(problem)
        return (0.0, 0.0) if rate is None else (rate * KNOWN, KNOWN)


def _own(problem: Problem) -> str:
    return name_of(problem.prompt, problem.gold)


def _stratum(problem: Problem) -> str:
    return f"{problem.group}|{problem.level}"


def expected_signal(a: Tensor, b: Tensor, squares: Tensor) -> Tensor:
    """Return sqrt(E[S(c)]) [M], c beta-binomial: the length that a gradient is expected to have.

    `squares` [n+1] holds S(c), the sum of the squared advantages of a prompt with c correct
    answers. Scores grad log pi of different answers are taken as orthogonal and of equal length.
    """
    n = len(squares) - 1
    c = torch.arange(n + 1, dtype=torch.float64)
    a, b = a[:, None], b[:, None]
    ways = torch.lgamma(torch.tensor(n + 1.0).double()) - torch.lgamma(c + 1) - (n - c + 1).lgamma()
    beta = torch.lgamma(a) + torch.lgamma(b) - torch.lgamma(a + b)
    log_pmf = ways + torch.lgamma(a + c) + torch.lgamma(b + n - c) - torch.lgamma(a + b + n) - beta
    return (log_pmf.exp() @ squares).sqrt()


def signal(advantages: Advantages, n: int) -> Tensor:
    """Return S(c) [n+1], the sum of the squared advantages of a prompt with c correct answers."""
    verdicts = (torch.arange(n) < torch.arange(n + 1)[:, None]).double()
    return advantages(verdicts).square().sum(1)


def choose(scores: Tensor, uniform: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return the chosen column of each row of scores [N, candidates], and its importance [N].

    Column m is chosen with q_m = (1 - uniform) score_m / sum of scores + uniform / candidates; its
    importance 1/(candidates q_m) is at most 1/uniform. Scores that are all 0 count as equal.
    """
    count = scores.shape[1]
    total = scores.sum(1, keepdim=True)
    share = torch.where(total > 0, scores / total, 1 / count)
    q = (1 - uniform) * share + uniform / count
    chosen = torch.multinomial(q, 1, generator=generator)
    return chosen[:, 0], 1 / (count * q.gather(1, chosen)[:, 0])
