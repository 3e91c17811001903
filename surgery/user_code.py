"""Functions that the configuration names as file.py:function, and their settings."""

import inspect
import traceback
from collections.abc import Callable, Mapping
from importlib import util
from pathlib import Path
from types import ModuleType
from typing import Any


class UserCodeError(Exception):
    """The user's code does not meet its contract; the message is one line."""


class Unloadable(UserCodeError):
    """The file.py:function cannot be loaded; the message says why, with a remedy."""


def load_function(name: str) -> Callable[..., Any]:
    """Return the function or class that `name`, a `file.py:function`, points to."""
    path, _, function = name.partition(":")
    spec = util.spec_from_file_location(Path(path).stem, path)
    if spec is None or spec.loader is None or not Path(path).is_file():
        why = f"cannot be loaded (there is no Python file {path})"
        raise Unloadable(f"{why}; give it as file.py:function")
    module = util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # the user's file may raise anything
        raise Unloadable(_unloaded(error, name)) from None
    if not hasattr(module, function):
        raise Unloadable(f"cannot be loaded ({path} has no {function}); {_choices(module)}")
    return getattr(module, function)


def _unloaded(error: Exception, name: str) -> str:
    """Return why a file fails while it is loaded, with the line to correct."""
    path = name.partition(":")[0]
    text = " ".join(f"{type(error).__name__}: {error}".split())[:200].rstrip(": ")
    place, line = path, _line(error, path)
    if isinstance(error, SyntaxError) and error.filename:  # of this file, or of one that it imports
        same = Path(error.filename).resolve() == Path(path).resolve()
        place, line = path if same else error.filename, error.lineno
        text = f"{type(error).__name__}: {error.msg}"
    return f"cannot be loaded ({text}); correct {place}{f', line {line}' if line else ''}"


def _choices(module: ModuleType) -> str:
    """Return the functions and classes that a file itself defines, in words."""
    names = [x for x, y in vars(module).items() if getattr(y, "__module__", "") == module.__name__]
    return f"it has {', '.join(names)}" if names else "it has no function or class; write one"


def _line(error: BaseException, path: str) -> int | None:
    """Return the last line of the file that the error passed."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [x.lineno for x in frames if Path(x.filename).resolve() == Path(path).resolve()]
    return lines[-1] if lines else None


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
    code = getattr(function, "__code__", None)
    line = _line(error, path) or (code and code.co_firstlineno)
    text = " ".join(f"{type(error).__name__}: {error}".split())[:200].rstrip(": ")
    return f"{text} ({path}, line {line})" if line else f"{text} ({path})"
