"""Where problems come from. A task of your own imports `Problem` and `Task` from here."""

from eval.tasks.task import Problem, Task, TaskError

__all__ = ["Problem", "Task", "TaskError"]
