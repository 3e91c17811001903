"""The names that a configuration can choose: rules, estimators, tasks, samplers, configurations."""

import inspect
from collections.abc import Mapping
from pathlib import Path

from eval.rollout.sample import SAMPLERS
from eval.tasks.registry import TASKS
from surgery.estimators import ESTIMATORS
from surgery.rules import RULES


def listed(configs: Path) -> str:
    """Return every name with its line, by the key or option that takes it."""
    kinds: dict[str, Mapping[str, object]] = {
        "Rules, surgery.rule": {name: x.function for name, x in RULES.items()},
        "Estimators of the policy gradient, objective.estimator": ESTIMATORS,
        "Tasks, task.name": TASKS,
        "Samplers, train.rollouts": {name: type(x) for name, x in SAMPLERS.items()},
    }
    parts = {
        title: {name: _first_line(inspect.getdoc(x) or "") for name, x in kind.items()}
        for title, kind in kinds.items()
    }
    paths = sorted(configs.rglob("*.yaml"), key=lambda x: (len(x.parts), x))
    parts["Configurations, --config"] = {
        str(x.relative_to(configs).with_suffix("")): _first_line(x.read_text()) for x in paths
    }
    return "\n\n".join(f"{title}:\n{_columns(lines)}" for title, lines in parts.items())


def _first_line(text: str) -> str:
    return text.partition("\n")[0].removeprefix("# ")


def _columns(lines: Mapping[str, str]) -> str:
    width = max(map(len, lines))
    return "\n".join(f"  {name.ljust(width)}  {line}".rstrip() for name, line in lines.items())
