"""Labels of runs, and the settings in which they differ."""

from collections.abc import Mapping, Sequence
from typing import Any

from eval.report.tables import NONE

Config = Mapping[str, Any]  # {"train.lr": 3e-4, ...}

# keys that may differ within a group; train.top_p could only be 1 and is no longer a key
NOT_COMPARED = ("seed", "run.", "logging.", "diagnose.", "eval.every", "train.top_p")

SYMBOLS = {"surgery.mix": "λ", "objective.k": "k"}


def labels(configs: Sequence[Config]) -> list[str]:
    """Return the name of each run's rule, with the settings that distinguish runs of one rule."""
    names = [rule(config) for config in configs]
    made = list(names)
    for name in dict.fromkeys(names):
        places = [i for i, other in enumerate(names) if other == name]
        same = [configs[i] for i in places]
        for i, parts in zip(places, distinctions(same, differing(same)), strict=True):
            made[i] = ", ".join([name, *parts])
    return made


def rule(config: Config) -> str:
    """Return the rule or, without one, the estimator; `loo` is pass1 or passk by its k."""
    name = config["surgery.rule"].rpartition(":")[2]
    if name != "none":
        return name
    if config["objective.estimator"] != "loo":
        return config["objective.estimator"].rpartition(":")[2]
    return "pass1" if config["objective.k"] == 1 else "passk"


def differing(configs: Sequence[Config]) -> list[str]:
    """Return the keys whose values differ, except those that do not change the results' meaning."""
    return [
        key
        for key in dict.fromkeys(key for config in configs for key in config)
        if any(config.get(key) != configs[0].get(key) for config in configs)
        and not key.startswith(NOT_COMPARED)
    ]


def distinctions(configs: Sequence[Config], keys: Sequence[str]) -> list[tuple[str, ...]]:
    """Return settings such as "lr = 0.001" of each run, with as few keys as distinguish the runs.

    A setting without a value is left out.
    """
    parts: list[tuple[str, ...]] = [()] * len(configs)
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
