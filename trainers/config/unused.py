"""The settings that a configuration holds and its choices do not read."""

from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path

from eval.tasks.registry import TASKS
from surgery.estimators import ESTIMATORS
from surgery.rules import RULES, find_rule
from surgery.user_code import load_function, own_settings
from trainers.config.reading import overridden, own_keys
from trainers.config.schema import Config
from trainers.config.values import DEFAULTS, flatten, shown


def unused(config: Config) -> dict[str, str]:
    """Return the keys that the rule, the estimator, the task and the sampler do not read, and why.

    A key counts if it is a setting of at least one rule, estimator or task that the project has.
    Settings of your own in `options` always count.
    """
    found = {
        f"{section}.{key}": f"{choice} does not use it"
        for section, choice, of_all, own in _choices(config)
        for key in flatten(getattr(config, section))
        for name in [key.removeprefix("options.")]
        if (key in of_all or name != key) and name not in own
    }
    if config.train.rollouts != "vllm":
        why = f"train.rollouts = {config.train.rollouts} does not use it"
        found |= {f"rollout.{key}": why for key in flatten(config.rollout)}
    if config.train.sampler == "uniform":
        of_informative = ("candidates", "uniform_share", "history_decay")
        found |= {f"train.{x}": "train.sampler = uniform does not use it" for x in of_informative}
    if config.surgery.hold == "train":
        found["surgery.control_prompts"] = "surgery.hold = train does not use it"
    return found


def _choices(config: Config) -> Iterator[tuple[str, str, set[str], set[str]]]:
    """Yield (section, its choice in words, the settings of all choices, those of this one)."""
    surgery, objective, task = config.surgery, config.objective, config.task
    known, given = vars(surgery), {**vars(surgery), **surgery.options}
    of_rules = {name for x in RULES.values() for name in own_settings(x.function, known)}
    rule = find_rule(surgery.rule).function
    yield "surgery", f"rule {surgery.rule}", of_rules, {*own_settings(rule, given)}
    known = vars(objective)
    of_estimators = {name for x in ESTIMATORS.values() for name in own_settings(x, known)}
    estimator = ESTIMATORS[objective.estimator]
    own = {*own_settings(estimator, known)}
    yield "objective", f"estimator {objective.estimator}", of_estimators, own
    of_tasks = {name for x in TASKS.values() for name in _fields(x)}
    chosen = TASKS[task.name] if task.name in TASKS else load_function(task.name)
    yield "task", f"task {task.name}", of_tasks, _fields(chosen)


def _fields(task: object) -> set[str]:
    return {x.name for x in fields(task) if x.init} if is_dataclass(task) else set()


def unused_settings(config: Config, path: Path, overrides: Sequence[str]) -> list[str]:
    """Return a line for each setting that the user gave and the choices do not read.

    A value of a file that equals the default stays without a line, and so do the values that only
    the project's own configurations set.
    """
    flat = flatten(config)
    typed, written = {key for key, _ in overridden(overrides)}, own_keys(path)
    return [
        f"{key} = {shown(flat[key])}: {why}"
        for key, why in unused(config).items()
        if key in typed or (key in written and flat[key] != DEFAULTS.get(key))
    ]
