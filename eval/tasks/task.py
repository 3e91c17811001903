"""The interface of a task, and its problems."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from eval.errors import Refusal

if TYPE_CHECKING:  # a verifier's worker loads the user's file, and torch is slow to import
    from torch import Tensor
    from transformers import PretrainedConfig

    from eval.policy.policy import Policy


class TaskError(Refusal):
    """The task cannot be built as configured; the message is one line."""


@dataclass(frozen=True)
class Problem:
    """One prompt with its expected answer.

    The other fields name slices of the task; `group` is a name such as easy or hard.
    """

    id: str
    prompt: str
    gold: str
    group: str = ""
    level: str = ""
    subject: str = ""


def digest(problems: Sequence[Problem]) -> str:
    """Return a digest that distinguishes problems from others under the same name."""
    content = json.dumps([vars(x) for x in problems])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def name_of(prompt: str, gold: str) -> str:
    """Return a short name of a problem that is the same wherever the problem appears."""
    return hashlib.sha256(json.dumps([prompt, gold]).encode()).hexdigest()[:16]


class Task:
    """Problems, and the way to judge their answers: write a task of your own as below.

    Put a dataclass that extends `Task` into a file, say sums.py:

        import random
        from dataclasses import dataclass

        from eval.tasks import Problem, Task

        @dataclass
        class Sums(Task):
            largest: int = 9

            verifier = "exact"
            max_new_tokens = 4

            def training(self, seed, step, count):
                return self.draw(count, f"{seed} {step}")

            def evaluation(self, count):
                return self.draw(count, "evaluation")

            def draw(self, count, seed):
                dice = random.Random(seed)
                pairs = [(dice.randint(0, self.largest), dice.randint(0, 9)) for _ in range(count)]
                return [
                    Problem(f"{i} {a}+{b}", f"{a}+{b}=", str(a + b), "hard" if a > 9 else "easy")
                    for i, (a, b) in enumerate(pairs)
                ]

    and train on it:

        deepspeed launch/train.py --config configs/pcgrad.yaml model.path=DIR \\
            task.name=sums.py:Sums task.options.largest=99

    Every field takes its value from the key `task.options.<field>`, or from the key of that name
    in the `task` section. Give each field a default. Leave `verifier` and `max_new_tokens` without
    an annotation: with one they would be fields.

    You must write `training` and `evaluation`. Both must depend only on the fields and the
    arguments, because every rank and every resumed run calls them again. The ids of an evaluation
    must differ: the commands compare results by id. A prompt that is an `eval.policy.policy.Chat`
    is put into the tokenizer's chat template. All other methods have a default; you may leave them
    out.
    """

    # "exact", "math", "boxed" or file.py:function; the key task.verifier overrides it
    verifier: str
    # enough for an answer; the key train.max_new_tokens overrides it; if None, set that key
    max_new_tokens: int | None = None

    def training(self, seed: int, step: int, count: int) -> list[Problem]:
        """Return the `count` problems of training step `step`; steps begin at 1.

        A diagnosis uses the problems of step 0.
        """
        raise NotImplementedError

    def evaluation(self, count: int) -> list[Problem]:
        """Return the problems of every evaluation, the same for any seed, before and after.

        They may be fewer than `count` if the task has no more.
        """
        raise NotImplementedError

    def reference(self, count: int) -> list[Problem] | None:
        """Return problems to train on, the same for any seed, or None.

        Write it if problems of training and of evaluation differ in kind. A rule that compares
        training batches with the base's pass@1 then measures that pass@1 on these problems.
        """
        return None

    def base_rate(self, problem: Problem) -> float | None:
        """Return the base's recorded success rate on a training problem, or None if unknown.

        The rate must not have decided whether the problem is trained on: chosen rates are biased.
        """
        return None

    def control(self, seed: int, step: int, count: int) -> list[Problem] | None:
        """Return `count` problems that are never trained on, or None if there are none.

        They are of the kind of the training problems. `surgery.hold=control` judges them in each
        step.
        """
        return None

    def base_model(self) -> str:
        """Return the folder of the task's own base policy, the value of `model.path=base`.

        The first call makes the folder.
        """
        why = f"task {type(self).__name__} has none; name a folder or a hub id"
        raise TaskError(f"model.path = base: {why}")

    def base_config(self) -> "PretrainedConfig | None":
        """Return the shape of the task's own base, for --plan; None: --plan makes the base."""
        return None

    def success(self, policy: "Policy", temperature: float) -> "Population | None":
        """Return the true success probability of every problem, or None if it is unknown.

        It gives pass@k without sampling. A task that returns None is not called again.
        """
        return None

    def frontier_share(
        self, before: tuple[float, float], after: tuple[float, float], k: int
    ) -> float | None:
        """Return how far (pass@1, pass@k) moved from `before` towards the best reachable values.

        0 is no move, 1 is the best; None if that is unknown.
        """
        return None

    def frontier(self, k: int, points: int = 101) -> list[tuple[float, float]] | None:
        """Return (pass@1, pass@k) along the best reachable trade-off, or None."""
        return None


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
