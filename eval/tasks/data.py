"""Tasks from data: GSM8K, MATH, and your own data, from files, folders or the hub.

Training visits each problem once per epoch, in an order that depends on the seed; the evaluation's
problems are the same for any seed. Training omits the problems of the evaluation. The verifier
judges answers as mathematics, and the prompt asks for the answer in a box.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from eval.policy.policy import Chat
from eval.policy.streams import derive_seed
from eval.scores.folder import BadFolder, recorded
from eval.tasks.decontaminate import contaminated
from eval.tasks.epochs import in_epochs, order
from eval.tasks.sources import Item, Source, items
from eval.tasks.task import Problem, Task, TaskError

ASKING = {
    "chat": "{problem}\n\nPlease reason step by step, and put your final answer within \\boxed{}.",
    "plain": "Problem: {problem}\nReason step by step, and put the final answer within \\boxed{}.\n"
    "Solution:",
}


@dataclass
class Data(Task):
    """Problems and answers of your own: task.path is a file, a folder or a hub id.

    The fields are keys of the `task` section of a configuration.
    """

    path: str | None = None
    subset: str | None = None
    split: str = "train"
    eval_path: str | None = None
    eval_subset: str | None = None
    eval_split: str = "test"
    fields: dict[str, str] = field(default_factory=dict)
    template: str = "chat"
    prompt: str | None = None
    levels: list[str] = field(default_factory=list)
    rates: str | None = None
    easy_above: float | None = None
    hard_below: float | None = None
    decontaminate: bool = True
    held_out: int = 0

    verifier = "math"
    max_new_tokens = 1024
    # (path, subset) on the hub, by default
    own: ClassVar[tuple[str, str | None] | None] = None
    own_evaluation: ClassVar[tuple[str, str | None] | None] = None

    def training(self, seed: int, step: int, count: int) -> list[Problem]:
        """Return the next `count` problems of an endless stream with a new order in each epoch."""
        return in_epochs(self._training, seed, step, count)

    def control(self, seed: int, step: int, count: int) -> list[Problem] | None:
        """Return the next `count` of the problems that task.held_out sets aside."""
        return in_epochs(self._control, seed, step, count) if self.held_out else None

    def evaluation(self, count: int) -> list[Problem]:
        """Return `count` problems, or all if there are fewer; the choice never changes."""
        return _some(self._evaluation, "evaluation", count)

    def reference(self, count: int) -> list[Problem]:
        """Return training problems, the same for any seed, to measure the base's pass@1."""
        return _some(self._training, "reference", count)

    def base_rate(self, problem: Problem) -> float | None:
        """Return the recorded rate, unless thresholds chose the problems by it."""
        chosen = self.easy_above is not None or self.hard_below is not None
        return None if chosen else self._rate.get(problem.id)

    @property
    def _sources(self) -> tuple[Source, Source]:
        """The sources for training and for evaluation."""
        path, subset = self.path, self.subset
        if path is None and self.own:
            path, subset = self.own[0], subset or self.own[1]
        if path is None:
            raise TaskError("task.path = null: name a file, a folder or a hub id")
        eval_path, eval_subset = self.eval_path, self.eval_subset
        if eval_path is None and self.path is None and self.own_evaluation:
            eval_path, eval_subset = self.own_evaluation
        elif eval_path is None:
            eval_path, eval_subset = path, eval_subset or subset
        return (
            Source(path, subset, self.split),
            Source(eval_path, eval_subset, self.eval_split, "task.eval_"),
        )

    @cached_property
    def _evaluation_items(self) -> list[Item]:
        source, other = reversed(self._sources)
        problems, skipped = items(source, self.fields, own=source.path == other.path)
        _say(f"{source.path}, {source.split}: {len(problems):,} problems to evaluate on", skipped)
        return problems

    @cached_property
    def _evaluation(self) -> list[Problem]:
        return [self._problem(x) for x in self._evaluation_items]

    @property
    def _training(self) -> list[Problem]:
        """The problems to train on."""
        return self._split[0]

    @property
    def _control(self) -> list[Problem]:
        """The problems of the training split that are never trained on."""
        return self._split[1]

    @cached_property
    def _split(self) -> tuple[list[Problem], list[Problem]]:
        problems, aside = self._usable, self.held_out
        if not aside:
            return problems, []
        if aside >= len(problems):
            why = f"sets aside all of the {len(problems):,} problems to train on"
            raise TaskError(f"task.held_out = {aside}: {why}; lower it")
        held = set(order(derive_seed("control"), len(problems))[:aside])
        trained = [x for i, x in enumerate(problems) if i not in held]
        return trained, [problems[i] for i in sorted(held)]

    @cached_property
    def _usable(self) -> list[Problem]:
        """The training problems; standard error gets the number of omitted ones, and why."""
        source, _ = self._sources
        problems, skipped = items(source, self.fields, own=True)
        total, left_out = len(problems), []
        if self.decontaminate:
            evaluated = [x.text for x in self._evaluation_items]
            equal, near = contaminated([x.text for x in problems], evaluated)
            problems = [x for i, x in enumerate(problems) if i not in equal | near]
            left_out += [f"{len(equal):,} also in the evaluation", f"{len(near):,} nearly equal"]
            remedy = "the evaluation has all of these problems too; name another task.eval_path or "
            remedy += "task.eval_split, or set task.decontaminate=false"
            _check(problems, "task.split", self.split, remedy)
        if self.levels:
            levels = sorted({x.level for x in problems if x.level})
            wanted = {x.removeprefix("Level ") for x in self.levels}
            before, problems = len(problems), [x for x in problems if x.level in wanted]
            left_out.append(f"{before - len(problems):,} of other levels")
            remedy = f"leaves no problem; the data has {', '.join(levels) or 'no levels'}"
            _check(problems, "task.levels", self.levels, remedy)
        if self.rates and (self.easy_above is not None or self.hard_below is not None):
            before, problems = len(problems), [x for x in problems if self._group(x)]
            left_out.append(f"{before - len(problems):,} not easy or hard, or without a record")
            remedy = "leaves no problem within task.easy_above and task.hard_below, by its id"
            _check(problems, "task.rates", self.rates, remedy)
        why = f"; left out of {total:,}: {', '.join(left_out)}" if left_out else ""
        _say(f"{source.path}, {source.split}: {len(problems):,} problems to train on{why}", skipped)
        return [self._problem(x) for x in problems]

    @cached_property
    def _rate(self) -> dict[str, float]:
        """The base's success rate on each problem, by the problem's id."""
        if self.rates is None:
            return {}
        try:
            records = recorded(Path(self.rates), "task.rates")
        except BadFolder as error:
            raise TaskError(str(error)) from None
        return {name: r["c"] / r["n"] for name, r in records.items()}

    def _group(self, item: Item) -> str:
        rate = self._rate.get(item.id)
        if rate is not None and self.easy_above is not None and rate > self.easy_above:
            return "easy"
        if rate is not None and self.hard_below is not None and rate < self.hard_below:
            return "hard"
        return ""

    def _problem(self, item: Item) -> Problem:
        text = (self.prompt or ASKING[self.template]).replace("{problem}", item.text)
        prompt = Chat(text) if self.template == "chat" else text
        return Problem(item.id, prompt, item.gold, self._group(item), item.level, item.subject)


@dataclass
class Gsm8k(Data):
    """GSM8K (arXiv 2110.14168), whose answers are solutions that end with #### and a number."""

    max_new_tokens = 512
    own = ("openai/gsm8k", "main")


@dataclass
class Math(Data):
    """MATH (arXiv 2103.03874), evaluated on MATH-500 (arXiv 2305.20050).

    With a path of your own, the evaluation uses its `eval_split`.
    """

    max_new_tokens = 2048
    own = ("DigitalLearningGmbH/MATH-lighteval", None)
    own_evaluation = ("HuggingFaceH4/MATH-500", None)


def _some(problems: Sequence[Problem], purpose: str, count: int) -> list[Problem]:
    return [problems[i] for i in order(derive_seed(purpose), len(problems))[:count]]


def _check(problems: Sequence[Item], key: str, value: object, remedy: str) -> None:
    if not problems:
        raise TaskError(f"{key} = {value}: {remedy}")


def _say(line: str, skipped: int) -> None:
    """Print a line about the problems, on rank 0 only."""
    if skipped:
        line += f"; {skipped:,} rows are skipped: no gold answer, or a repeated id"
    if os.environ.get("RANK", "0") == "0":
        print(line, file=sys.stderr)
