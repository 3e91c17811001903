"""Values of a configuration: flat by key, parsed, and shown in a message."""

from dataclasses import fields, is_dataclass
from typing import Any

from eval.errors import Refusal
from trainers.config.schema import Config


class ConfigError(Refusal):
    """One line a mistake."""


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """{"train.lr": 3e-4, ...} of a configuration, in the order of its fields."""
    flat: dict[str, Any] = {}
    for f in fields(config):
        value, name = getattr(config, f.name), f"{prefix}{f.name}"
        if is_dataclass(value):
            flat |= flatten(value, f"{name}.")
        elif isinstance(value, dict):
            flat |= {f"{name}.{key}": x for key, x in value.items()}
        else:
            flat[name] = value
    return flat


def holds_pass_1(config: Config) -> bool:
    """Whether the rule holds the training batches' pass@1 against that of the base."""
    rule = config.surgery.rule
    return rule == "floor" or (rule == "pcgrad" and config.surgery.gain > 0)


def parse_schedule(text: str | None) -> list[tuple[int, int]]:
    """[(step, k), ...] of "4@50,1@100"."""
    pairs = [part.split("@") for part in text.split(",")] if text else []
    return sorted((int(step), int(k)) for k, step in pairs)


def parse_constraint(text: str) -> tuple[str, float]:
    """("eval/pass@8", 0.9) of "eval/pass@8>=0.9"."""
    name, sign, bound = text.partition(">=")
    if not sign or not name.strip():
        raise ValueError(text)
    return name.strip(), float(bound)


def shown(value: Any) -> str:
    text = "null" if value is None else str(value)
    return "".join(x if x.isprintable() else " " for x in text)


def first_line(error: Exception) -> str:
    return str(error).strip().replace("\n", " ")[:200]
