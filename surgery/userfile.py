"""Functions of the user's own, named as `file.py:function`."""

from collections.abc import Callable
from importlib import util
from pathlib import Path
from typing import Any


def load_function(name: str) -> Callable[..., Any]:
    """The function that `name` points to."""
    path, _, function = name.partition(":")
    spec = util.spec_from_file_location(Path(path).stem, path)
    if spec is None or spec.loader is None or not Path(path).is_file():
        raise FileNotFoundError(f"{name}: no Python file {path}")
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, function)
