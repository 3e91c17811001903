"""Labels of runs, and the settings in which they differ."""

from collections.abc import Mapping, Sequence
from typing import Any

from eval.report.tables import NONE

Config = Mapping[str, Any]  # {"train.lr": 3e-4, ...}

# keys that may differ within a group; train.top_p could only be 1 and is no longer a key
NOT_COMPARED = (
    *("seed", "run.", "logging.", "diagnose.", "eval.every", "train.top_p"),
    *("model.gradient_checkpointing", "task.verify_workers"),
    *("rollout.urls", "rollout.sync_dir", "rollout.timeout"),
)

MEASURED = ("model.", "task.", "eval.")  # sections that say which base is measured, and how
TRAINED = (  # keys of these sections that change the training alone, or the noise
    *(
        "eval.samples",
        "model.lora_",
        "task.split",
        "task.stories",
        "task.levels",
        "task.rates",
        "task.easy_above",
    ),
    *("task.hard_below", "task.decontaminate", "task.held_out"),
)

SYMBOLS = {"surgery.mix": "λ", "objective.k": "k", "task.name": "task"}


def is_measured(key: str) -> bool:
    """Return whether values of runs that differ in this key are no values of the same thing."""
    return key.startswith(MEASURED) and not key.startswith((*TRAINED, *NOT_COMPARED))


def measured_keys(configs: Sequence[Config]) -> list[str]:
    """Return the keys `is_measured` whose values differ, with task and model first."""
    keys = [key for key in differing(configs) if is_measured(key)]
    return sorted(keys, key=lambda key: (key != "task.name", key != "model.path"))


def labels(configs: Sequence[Config]) -> list[str]:
    """Return the name of each run's rule, with the settings that distinguish runs of one rule.

    Models, tasks and evaluations that differ are named on every run, whatever its rule.
    """
    names = [rule(config) for config in configs]
    measured = measured_keys(configs)
    parts = distinctions(configs, measured)
    for name in dict.fromkeys(names):
        places = [i for i, other in enumerate(names) if other == name]
        same = [configs[i] for i in places]
        own = [key for key in differing(same) if key not in measured]
        longer = distinctions(same, own, [parts[i] for i in places])
        for i, part in zip(places, longer, strict=True):
            parts[i] = part
    return [", ".join([name, *part]) for name, part in zip(names, parts, strict=True)]


def rule(config: Config) -> str:
    """Return the rule or, without one, the estimator; `loo` is named by its k and its filter."""
    name = config["surgery.rule"].rpartition(":")[2]
    if name != "none":
        return name
    if config["objective.estimator"] != "loo":
        return config["objective.estimator"].rpartition(":")[2]
    if config.get("objective.k_schedule"):
        return "anneal"
    if config.get("objective.filter"):
        return "filter"
    return "pass1" if config["objective.k"] == 1 else "passk"


def differing(configs: Sequence[Config]) -> list[str]:
    """Return the keys whose values differ, except those that do not change the results' meaning."""
    return [
        key
        for key in dict.fromkeys(key for config in configs for key in config)
        if any(config.get(key) != configs[0].get(key) for config in configs)
        and not key.startswith(NOT_COMPARED)
    ]


def distinctions(
    configs: Sequence[Config], keys: Sequence[str], known: Sequence[tuple[str, ...]] = ()
) -> list[tuple[str, ...]]:
    """Return settings such as "lr = 0.001" of each run, with as few keys as distinguish the runs.

    They follow those that are `known`. A setting without a value is left out.
    """
    parts = list(known) or [()] * len(configs)
    for key in keys:
        longer = [
            part
            if config.get(key) is None
            else (*part, f"{_short(key, config)} = {shown(config[key])}")
            for part, config in zip(parts, configs, strict=True)
        ]
        if len(set(longer)) > len(set(parts)):
            parts = longer
    return parts


def _short(key: str, config: Config) -> str:
    """Return a symbol, or the key without its section if no other section has such a key."""
    last = key.rpartition(".")[2]
    alone = sum(other.rpartition(".")[2] == last for other in config) == 1
    return SYMBOLS.get(key, last if alone else key)


def shown(value: Any) -> str:
    if value is None:
        return NONE
    return f"{value:g}" if isinstance(value, float) else str(value)
