"""Tasks, the sources of problems; your own task imports `Problem` and `Task` from here."""

from eval.tasks.task import Problem, Task, TaskError

__all__ = ["Problem", "Task", "TaskError"]
