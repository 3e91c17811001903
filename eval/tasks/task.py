"""A task: its problems, and the interface that a task of your own keeps."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from eval.errors import Refusal

if TYPE_CHECKING:
    from torch import Tensor

    from eval.policy.policy import Policy


class TaskError(Refusal):
    """A task that cannot be had as configured, in one line."""


@dataclass(frozen=True)
class Problem:
    """One prompt with the answer that is expected. The rest names slices of the task; `group` is
    such as easy or hard.
    """

    id: str
    prompt: str
    gold: str
    group: str = ""
    level: str = ""
    subject: str = ""


def digest(problems: Sequence[Problem]) -> str:
    """Tells problems from others under the same name."""
    content = json.dumps([vars(x) for x in problems])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


class Task(Protocol):
    """What the trainer and the evaluation need of a task. Both problem streams are pure functions
    of their arguments.
    """

    verifier: str  # "exact", "math" or "boxed"
    max_new_tokens: int  # enough for an answer; the configuration may say otherwise

    def training(self, seed: int, step: int, count: int) -> list[Problem]:
        """The problems of training step `step`."""
        ...

    def evaluation(self, count: int) -> list[Problem]:
        """The problems of every evaluation: the same for any seed, before and after."""
        ...

    def base_model(self) -> str:
        """Folder of the task's own base policy, made on first use."""
        ...


class DataTask(Task, Protocol):
    """A task whose training and evaluation problems are of different kinds."""

    def reference(self, count: int) -> list[Problem]:
        """Problems to train on, the same for any seed: what the base's pass@1 is had of, where a
        rule holds the training batches against it.
        """
        ...


class ExactTask(Task, Protocol):
    """A task that also knows its true success probabilities, so that pass@k can be had without
    sampling.
    """

    def success(self, policy: "Policy", temperature: float) -> "Population":
        """p of every problem of the population at a temperature, by teacher forcing."""
        ...

    def frontier_share(
        self, before: tuple[float, float], after: tuple[float, float], k: int
    ) -> float | None:
        """How far (pass@1, pass@k) moved from `before` towards the best that is reachable: 0 there,
        1 at the best.
        """
        ...


class ShapedTask(Task, Protocol):
    """A task that knows its base's shape before the base is made; --plan makes any other's."""

    def base_config(self) -> Any:
        """The base's config, as transformers has it."""
        ...


@dataclass(frozen=True)
class Population:
    """Success probabilities `p` of all problems, each with its share of the population."""

    p: "Tensor"
    share: "Tensor"
    index: Mapping[tuple[str, str], int]  # (prompt, gold) -> position

    def pass_at(self, ks: Sequence[int]) -> dict[str, float]:
        from surgery.objectives import pass_at_k

        return {f"pass@{k}": float(self.share @ pass_at_k(self.p, k)) for k in ks}

    def of(self, problem: Problem) -> float:
        return float(self.p[self.index[problem.prompt, problem.gold]])
