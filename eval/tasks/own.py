"""A task of the user's own: its mistakes end a command in one line."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import partial
from typing import Any

from eval.tasks.task import Problem, TaskError
from surgery.user_code import fault, load_function


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
