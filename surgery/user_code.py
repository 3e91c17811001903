"""Functions that the configuration names as file.py:function, and their settings."""

import inspect
import traceback
from collections.abc import Callable, Mapping
from importlib import util
from pathlib import Path
from typing import Any


class UserCodeError(Exception):
    """The user's code does not meet its contract; the message is one line."""


def load_function(name: str) -> Callable[..., Any]:
    """Return the function that `name`, a `file.py:function`, points to."""
    path, _, function = name.partition(":")
    spec = util.spec_from_file_location(Path(path).stem, path)
    if spec is None or spec.loader is None or not Path(path).is_file():
        raise FileNotFoundError(f"there is no Python file {path}")
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, function)


def own_settings(function: Callable[..., Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the `settings` that are keyword-only arguments of the function."""
    parameters = inspect.signature(function).parameters.values()
    names = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name in settings]
    return {name: settings[name] for name in names}


def without_value(function: Callable[..., Any], settings: Mapping[str, Any]) -> list[str]:
    """Return the keyword-only arguments without a default and without a value in `settings`."""
    parameters = inspect.signature(function).parameters.values()
    needed = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty]
    return [name for name in needed if name not in settings]


def fault(error: BaseException, name: str, function: object = None) -> str:
    """Return the error in one line, with the line number in the file of `name`.

    A call with wrong arguments reaches no line of the file; the line is then that of `function`.
    """
    path = name.rpartition(":")[0]
    frames = traceback.extract_tb(error.__traceback__)
    lines = [x.lineno for x in frames if Path(x.filename).resolve() == Path(path).resolve()]
    code = getattr(function, "__code__", None)
    line = lines[-1] if lines else code and code.co_firstlineno
    text = " ".join(f"{type(error).__name__}: {error}".split())[:200].rstrip(": ")
    return f"{text} ({path}, line {line})" if line else f"{text} ({path})"
