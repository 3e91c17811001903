"""Tasks: where problems come from and how answers are judged. A new task is one file and one line
in TASKS.
"""

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from eval.tasks.own import OwnTask, _filled

if TYPE_CHECKING:
    pass


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
