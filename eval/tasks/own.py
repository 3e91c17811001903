"""A task of the user's own: its mistakes end a command in one line."""

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from eval.tasks.task import Population, Problem, Task, TaskError
from surgery.user_code import fault, load_function

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from eval.policy.policy import Policy

T = TypeVar("T")


def filled(factory: type[T], options: Mapping[str, Any]) -> T:
    """A dataclass made from those options that it has as fields."""
    known = {f.name for f in fields(factory) if f.init}  # type: ignore[arg-type]
    return factory(**{key: value for key, value in options.items() if key in known})


class OwnTask(Task):
    """The user's own `file.py:Class`, with the defaults of `Task` where it lacks a method.

    The class may extend `Task` or, as in version 0.1, be any dataclass. The methods that every
    command needs are checked: a mistake is a line that names the file.
    """

    def __init__(self, options: Mapping[str, Any]):
        self._name = options["name"]
        self._task = self._load(options)
        for method in ("training", "evaluation"):
            if self._written(method) is None:
                raise self._refusal(f"has no method {method}; add it, as `Task` has it")
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
        except Exception as error:  # whatever the user's file does
            raise self._refusal(f"{fault(error, self._name)}; correct the class") from None
        raise self._refusal("is no class of data; write a class, with @dataclass above it")

    def _written(self, name: str) -> Callable[..., Any] | None:
        """The method of the user's class; None where it has none but the default of `Task`."""
        method = getattr(self._task, name, None)
        default = getattr(method, "__func__", None) is getattr(Task, name)
        return method if callable(method) and not default else None

    def training(self, seed: int, step: int, count: int) -> list[Problem]:
        return self._problems("training", seed, step, count)

    def evaluation(self, count: int) -> list[Problem]:
        return self._problems("evaluation", count)

    def reference(self, count: int) -> list[Problem] | None:
        return self._problems("reference", count) if self._written("reference") else None

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
        found = self._checked(name, *arguments)
        mistake = _not_problems(found, arguments[-1], name == "training")
        if mistake:
            raise self._refusal(f"{name}{arguments} {mistake}")
        return found

    def _checked(self, name: str, *arguments: int) -> Any:
        """The result of a method of the user's, or the line that says how it failed."""
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
