"""A user's task, whose mistakes end a command in one line."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from eval.tasks.task import Population, Problem, Task, TaskError
from surgery.user_code import Unloadable, fault, load_function

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from eval.policy.policy import Policy

T = TypeVar("T")


def filled(factory: type[T], options: Mapping[str, Any]) -> T:
    """Return a dataclass made from the options that are its fields."""
    known = {f.name for f in fields(factory) if f.init}  # type: ignore[arg-type]
    return factory(**{key: value for key, value in options.items() if key in known})


class OwnTask(Task):
    """The user's `file.py:Class`, with the defaults of `Task` for missing methods.

    The class may extend `Task` or, as in version 0.1, be any dataclass. The methods that every
    command needs are checked: a mistake gives one line that names the file.
    """

    def __init__(self, options: Mapping[str, Any]):
        self._name = options["name"]
        self._task = self._load(options)
        for method in ("training", "evaluation"):
            if self._written(method) is None:
                raise self._refusal(f"has no method {method}; add it, as in `Task`")
        verifier = options.get("verifier") or getattr(self._task, "verifier", None)
        if verifier not in ("exact", "math", "boxed") and ":" not in str(verifier):
            why = f"has the verifier {verifier}; write exact, math, boxed or file.py:function"
            raise self._refusal(f"{why} there, or set task.verifier")
        limit = getattr(self._task, "max_new_tokens", None)
        if limit is not None and (not isinstance(limit, int) or limit < 1):
            why = f"has max_new_tokens = {limit}"
            raise self._refusal(f"{why}; give it the most tokens that an answer needs")
        self.verifier, self.max_new_tokens = str(verifier), limit

    def _load(self, options: Mapping[str, Any]) -> object:
        try:
            factory = load_function(self._name)
            if isinstance(factory, type) and is_dataclass(factory):
                return filled(factory, options)
        except TaskError:
            raise
        except Unloadable as error:
            raise self._refusal(str(error)) from None
        except Exception as error:  # the user's file may raise anything
            given = [f"task.options.{x}" for x in options.get("options", ())]
            why = f"{fault(error, self._name)}; correct the class"
            raise self._refusal(", or ".join([why, *given])) from None
        raise self._refusal("is no dataclass; write a class with @dataclass above it")

    def _written(self, name: str) -> Callable[..., Any] | None:
        """Return the method of the user's class; None if only `Task` has it."""
        method = getattr(self._task, name, None)
        default = getattr(method, "__func__", None) is getattr(Task, name)
        return method if callable(method) and not default else None

    def training(self, seed: int, step: int, count: int) -> list[Problem]:
        return self._problems("training", seed, step, count)

    def evaluation(self, count: int) -> list[Problem]:
        problems = self._problems("evaluation", count)
        ids = Counter(x.id for x in problems)
        name, times = ids.most_common(1)[0]
        if times > 1:
            why = f"evaluation({count}) returned {times} problems with the id {name!r:.80}"
            raise self._refusal(f"{why}; give each problem an id of its own")
        return problems

    def reference(self, count: int) -> list[Problem] | None:
        return self._problems("reference", count) if self._written("reference") else None

    def base_rate(self, problem: Problem) -> float | None:
        return (self._written("base_rate") or super().base_rate)(problem)

    def control(self, seed: int, step: int, count: int) -> list[Problem] | None:
        return self._problems("control", seed, step, count) if self._written("control") else None

    def base_model(self) -> str:
        if not self._written("base_model"):
            why = f"task {self._name} has no method base_model"
            raise TaskError(f"model.path = base: {why}; name a folder or a hub id")
        path = self._checked("base_model")
        if not isinstance(path, str):
            raise self._refusal(f"base_model() returned {path!r:.80}; return a path")
        return path

    def base_config(self) -> "PretrainedConfig | None":
        return (self._written("base_config") or super().base_config)()

    def success(self, policy: "Policy", temperature: float) -> Population | None:
        return (self._written("success") or super().success)(policy, temperature)

    def frontier_share(
        self, before: tuple[float, float], after: tuple[float, float], k: int
    ) -> float | None:
        method = self._written("frontier_share") or super().frontier_share
        return method(before, after, k)

    def frontier(self, k: int, points: int = 101) -> list[tuple[float, float]] | None:
        return (self._written("frontier") or super().frontier)(k, points)

    def _problems(self, name: str, *arguments: int) -> list[Problem]:
        problems = self._checked(name, *arguments)
        mistake = _not_problems(problems, arguments[-1], name in ("training", "control"))
        if mistake:
            raise self._refusal(f"{name}{arguments} {mistake}")
        return problems

    def _checked(self, name: str, *arguments: int) -> Any:
        """Return the result of a user's method; raise one line with the reason if it fails."""
        method = self._written(name)
        assert method is not None
        try:
            return method(*arguments)
        except TaskError:
            raise
        except Exception as error:
            why = f"{name}{arguments} ended with {fault(error, self._name, method)}"
            raise self._refusal(f"{why}; correct it") from None

    def _refusal(self, why: str) -> TaskError:
        return TaskError(f"task.name = {self._name}: {why}")


def _not_problems(problems: Any, count: int, exactly: bool) -> str | None:
    """Return the mistake in the problems that a task returned, or None."""
    if not isinstance(problems, list | tuple) or not problems:
        return f"returned {problems!r:.80}; return a list of Problem"
    for x in problems:
        if not isinstance(x, Problem):
            return f"returned {x!r:.80} among its problems; return a list of Problem"
        for name in ("prompt", "gold"):
            if not isinstance(getattr(x, name), str):
                value = f"{getattr(x, name)!r:.40}"
                return f"returned a problem whose {name} is {value}; give it a text"
    if exactly and len(problems) != count:
        return f"returned {len(problems)} problems instead of {count}; return {count}"
    return None
