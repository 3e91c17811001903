"""The tasks by their names. A new task is one file and one line in TASKS."""

from collections.abc import Mapping
from typing import Any

from eval.tasks.chain import Chain
from eval.tasks.data import Data, Gsm8k, Math
from eval.tasks.own import OwnTask, filled
from eval.tasks.task import Task
from eval.tasks.twin import Twin

TASKS: dict[str, type[Task]] = {
    "twin": Twin,
    "chain": Chain,
    "gsm8k": Gsm8k,
    "math": Math,
    "data": Data,
}


OF_DATA = [name for name, task in TASKS.items() if issubclass(task, Data)]


def build_task(options: Mapping[str, Any]) -> Task:
    """The task named `options["name"]`, or of a `file.py:Class`, a dataclass.

    It is given those options that it has as fields.
    """
    task = TASKS.get(options["name"])
    return OwnTask(options) if task is None else filled(task, options)
