"""Tasks: where problems come from and how answers are judged. A new task is one file and one line
in TASKS.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

from surgery.binding import fault, load_function

if TYPE_CHECKING:
    from torch import Tensor

    from eval.policy import Policy


class TaskError(Exception):
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


TASKS = {
    "twin": "eval.tasks.twin:Twin",
    "chain": "eval.tasks.chain:Chain",
    "gsm8k": "eval.tasks.data:Gsm8k",
    "math": "eval.tasks.data:Math",
    "data": "eval.tasks.data:Data",
}
OF_DATA = [name for name, place in TASKS.items() if place.startswith("eval.tasks.data:")]


def build_task(options: Mapping[str, Any]) -> Any:
    """The task named `options["name"]`, or of a `file.py:Class`, a dataclass.

    It is given those options that it has as fields.
    """
    if options["name"] not in TASKS:
        return OwnTask(options)
    module, _, cls = TASKS[options["name"]].partition(":")
    return _filled(getattr(import_module(module), cls), options)


def _filled(factory: Any, options: Mapping[str, Any]) -> Any:
    known = {f.name for f in fields(factory) if f.init}
    return factory(**{key: value for key, value in options.items() if key in known})


class OwnTask:
    """A task of the user's own `file.py:Class`: what it lacks or does wrong is said in one line."""

    CHECKED = ("training", "evaluation", "reference", "base_model")

    def __init__(self, options: Mapping[str, Any]):
        self._name = options["name"]
        try:
            factory = load_function(self._name)
            is_class = isinstance(factory, type) and is_dataclass(factory)
            self._task = _filled(factory, options) if is_class else None
        except TaskError:
            raise
        except Exception as error:  # whatever the user's file does
            raise self._refusal(f"{fault(error, self._name)}; correct the class") from None
        if self._task is None:
            raise self._refusal("is no class of data; write a class, with @dataclass above it")
        for method in ("training", "evaluation"):
            if not callable(getattr(self._task, method, None)):
                raise self._refusal(f"has no method {method}; add it, as `Task` has it")
        verifier = options.get("verifier") or getattr(self._task, "verifier", None)
        if verifier not in ("exact", "math", "boxed") and ":" not in str(verifier):
            why = f"has the verifier {verifier}; write exact, math, boxed or file.py:function"
            raise self._refusal(f"{why} there, or set task.verifier")
        limit = getattr(self._task, "max_new_tokens", None)
        if not isinstance(limit, int) or limit < 1:
            why = f"has max_new_tokens = {limit}"
            raise self._refusal(f"{why}; give it the most tokens that an answer needs")

    def __getattr__(self, name: str) -> Any:
        """What the task has; its problems and its base are checked as they are asked for."""
        if name == "base_model" and not hasattr(self._task, name):
            why = f"task {self._name} has no method base_model"
            raise TaskError(f"model.path = base: {why}; name a folder or a hub id")
        found = getattr(self._task, name)
        return partial(self._checked, name, found) if name in self.CHECKED else found

    def _checked(self, name: str, method: Any, *arguments: int) -> Any:
        try:
            found = method(*arguments)
        except TaskError:
            raise
        except Exception as error:
            why = f"{name}{arguments} ended with {fault(error, self._name, method)}"
            raise self._refusal(f"{why}; correct it") from None
        if name == "base_model":
            mistake = None if isinstance(found, str) else f"returned {found!r:.80}; return a path"
        else:
            mistake = _not_problems(found, arguments[-1], name == "training")
        if mistake:
            raise self._refusal(f"{name}{arguments} {mistake}")
        return found

    def _refusal(self, why: str) -> TaskError:
        return TaskError(f"task.name = {self._name}: {why}")


def _not_problems(found: Any, count: int, exactly: bool) -> str | None:
    """What is wrong with the problems that a task gave, if anything is."""
    if not isinstance(found, list | tuple) or not found:
        return f"returned {found!r:.80}; return a list of Problem"
    for x in found:
        if not isinstance(x, Problem):
            return f"returned {x!r:.80} among its problems; return a list of Problem"
        for name in ("prompt", "gold"):
            if not isinstance(getattr(x, name), str):
                return f"returned a problem whose {name} is {getattr(x, name)!r:.40}, and no text"
    if exactly and len(found) != count:
        return f"returned {len(found)} problems of {count}; return as many as it is asked for"
    return None
