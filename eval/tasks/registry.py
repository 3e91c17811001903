"""The tasks by name; a new task is one file and one line in TASKS."""

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
    """Return the task `options["name"]`, a name in TASKS or a dataclass `file.py:Class`.

    The options that are its fields become their values.
    """
    task = TASKS.get(options["name"])
    return OwnTask(options) if task is None else filled(task, options)
