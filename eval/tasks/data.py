"""Tasks from data: GSM8K, MATH, and data of your own, from files, folders or the hub.

Training visits each problem once an epoch, in an order of the seed; the evaluation's problems are
the same for any seed. What the evaluation has too is left out of training. A problem's answer is
judged as mathematics, and the prompt asks for it in a box.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import ClassVar

import torch

from eval.policy.policy import Chat
from eval.policy.streams import derive_seed
from eval.scores.folder import BadFolder, recorded
from eval.tasks.decontaminate import contaminated
from eval.tasks.sources import Item, Source, items
from eval.tasks.task import Problem, Task, TaskError

ASKING = {
    "chat": "{problem}\n\nPlease reason step by step, and put your final answer within \\boxed{}.",
    "plain": "Problem: {problem}\nReason step by step, and put the final answer within \\boxed{}.\n"
    "Solution:",
}


@dataclass
class Data(Task):
    """Problems of your own. The fields are the keys of the `task` section of a configuration."""

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

    verifier = "math"
    max_new_tokens = 1024
    # (path, subset) on the hub, where none is given
    own: ClassVar[tuple[str, str | None] | None] = None
    own_evaluation: ClassVar[tuple[str, str | None] | None] = None

    def training(self, seed: int, step: int, count: int) -> list[Problem]:
        """The next `count` of an endless stream, in which each epoch is a new order of all."""
        problems, found = self._training, []
        for place in range(max(step - 1, 0) * count, max(step, 1) * count):
            epoch, i = divmod(place, len(problems))
            found.append(problems[_order(derive_seed(seed, "epoch", epoch), len(problems))[i]])
        return found

    def evaluation(self, count: int) -> list[Problem]:
        """`count` of them, all where there are no more: drawn once for ever."""
        return _some(self._evaluation, "evaluation", count)

    def reference(self, count: int) -> list[Problem]:
        """Training problems, the same for any seed, of which the base's pass@1 can be had."""
        return _some(self._training, "reference", count)

    @property
    def _sources(self) -> tuple[Source, Source]:
        """For training and for evaluation."""
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
        found, without = items(source, self.fields, own=source.path == other.path)
        _say(f"{source.path}, {source.split}: {len(found):,} problems to evaluate on", without)
        return found

    @cached_property
    def _evaluation(self) -> list[Problem]:
        return [self._problem(x) for x in self._evaluation_items]

    @cached_property
    def _training(self) -> list[Problem]:
        """What is left of the training data, and on standard error what was left out, and why."""
        source, _ = self._sources
        found, without = items(source, self.fields, own=True)
        whole, left_out = len(found), []
        if self.decontaminate:
            evaluated = [x.text for x in self._evaluation_items]
            equal, near = contaminated([x.text for x in found], evaluated)
            found = [x for i, x in enumerate(found) if i not in equal | near]
            left_out += [f"{len(equal):,} that the evaluation has too", f"{len(near):,} nearly so"]
            remedy = "the evaluation has all of these problems too; name another task.eval_path or "
            remedy += "task.eval_split, or set task.decontaminate=false"
            _check(found, "task.split", self.split, remedy)
        if self.levels:
            there = sorted({x.level for x in found if x.level})
            wanted = {x.removeprefix("Level ") for x in self.levels}
            before, found = len(found), [x for x in found if x.level in wanted]
            left_out.append(f"{before - len(found):,} of other levels")
            remedy = f"leaves no problem; there are {', '.join(there) or 'no levels'}"
            _check(found, "task.levels", self.levels, remedy)
        if self.rates:
            before, found = len(found), [x for x in found if self._group(x)]
            left_out.append(f"{before - len(found):,} neither easy nor hard, or without a record")
            remedy = "leaves no problem within task.easy_above and task.hard_below, by its id"
            _check(found, "task.rates", self.rates, remedy)
        why = f"; of {whole:,} are left out {', '.join(left_out)}" if left_out else ""
        _say(f"{source.path}, {source.split}: {len(found):,} problems to train on{why}", without)
        return [self._problem(x) for x in found]

    @cached_property
    def _rate(self) -> dict[str, float]:
        """How often the base solved a problem, by the problem's id."""
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
    """GSM8K (arXiv 2110.14168): its answers are solutions that end with #### and a number."""

    max_new_tokens = 512
    own = ("openai/gsm8k", "main")


@dataclass
class Math(Data):
    """MATH (arXiv 2103.03874), evaluated on MATH-500 (arXiv 2305.20050); where a path is given, on
    the `eval_split` that is there.
    """

    max_new_tokens = 2048
    own = ("DigitalLearningGmbH/MATH-lighteval", None)
    own_evaluation = ("HuggingFaceH4/MATH-500", None)


@lru_cache(4)
def _order(seed: int, size: int) -> list[int]:
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed)).tolist()


def _some(problems: Sequence[Problem], purpose: str, count: int) -> list[Problem]:
    return [problems[i] for i in _order(derive_seed(purpose), len(problems))[:count]]


def _check(found: Sequence[Item], key: str, value: object, remedy: str) -> None:
    if not found:
        raise TaskError(f"{key} = {value}: {remedy}")


def _say(line: str, without: int) -> None:
    """Once, however many ranks there are."""
    if without:
        line += f"; {without:,} rows are none: without a gold answer, or of an id met before"
    if os.environ.get("RANK", "0") == "0":
        print(line, file=sys.stderr)
