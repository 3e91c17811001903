"""From the configuration to functions: the user's own file.py:function, and settings."""

import inspect
from collections.abc import Callable, Mapping
from importlib import util
from pathlib import Path
from typing import Any


def load_function(name: str) -> Callable[..., Any]:
    """The function that `name`, a `file.py:function`, points to."""
    path, _, function = name.partition(":")
    spec = util.spec_from_file_location(Path(path).stem, path)
    if spec is None or spec.loader is None or not Path(path).is_file():
        raise FileNotFoundError(f"there is no Python file {path}")
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, function)


def own_settings(function: Callable[..., Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `settings` that the function names as keyword-only arguments."""
    parameters = inspect.signature(function).parameters.values()
    names = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name in settings]
    return {name: settings[name] for name in names}
