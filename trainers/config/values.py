"""The values of a configuration: flattened, parsed, checked against their range, and printed."""

import difflib
import operator
from collections.abc import Iterable, Iterator
from dataclasses import Field, fields, is_dataclass
from typing import Any

from eval.errors import Refusal
from trainers.config.schema import Config


class ConfigError(Refusal):
    """A wrong configuration; the message has one line per mistake."""


def _keys(section: type, prefix: str = "") -> Iterator[tuple[str, Field]]:
    for f in fields(section):
        if isinstance(f.type, type) and is_dataclass(f.type):
            yield from _keys(f.type, f"{prefix}{f.name}.")
        else:
            yield f"{prefix}{f.name}", f


KEYS = dict(_keys(Config))  # by their dotted names
OPTIONS = tuple(x for x, f in KEYS.items() if f.default_factory is dict)  # hold names of your own
KINDS: dict[Any, str] = {
    **{int: "a whole number", float: "a number", str: "a text", bool: "true or false"},
    **{type(None): "null", list[str]: "a list, such as [4, 5]"},
    **{dict[str, str]: "names of your own", dict[str, Any]: "names of your own"},
}
BOUNDS = {"at least": operator.ge, "above": operator.gt, "at most": operator.le}


def kind(key: str) -> str:
    """Return the type of a key in words."""
    options = getattr(KEYS[key].type, "__args__", ()) if KEYS[key].type not in KINDS else ()
    return " or ".join(KINDS[x] for x in options or [KEYS[key].type])


def must_be_one_of(value: str, names: Iterable[str], more: str = "") -> str:
    """Return the message for a value that is none of the names, with the nearest name."""
    names = list(names)
    near = difflib.get_close_matches(value, names, 1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    return f"must be one of {', '.join(names)}{more}{hint}"


def misfit(key: str, value: Any) -> str | None:
    """Return a message if the value lies outside the range of its key."""
    known = KEYS[key].metadata
    if value is None:
        return None
    if "one of" in known and value not in known["one of"]:
        return must_be_one_of(value, known["one of"])
    for name, holds in BOUNDS.items():
        if name in known and not holds(value, known[name]):
            return f"must be {name} {known[name]}"
    return None


def described(section: str = "") -> str:
    """Return one line per key of a section, or of all: default, type and range, help."""
    lines = []
    for key, f in KEYS.items():
        if not f"{key}.".startswith(f"{section}." if section else ""):
            continue
        default = f.default_factory() if callable(f.default_factory) else f.default
        bounds = [f"{name} {f.metadata[name]}" for name in BOUNDS if name in f.metadata]
        choices = f.metadata.get("one of")
        values = f"one of {', '.join(choices)}" if choices else ", ".join([kind(key), *bounds])
        text = str(default).lower() if isinstance(default, bool) else shown(default)
        lines.append(f"{key} = {text} ({values}): {f.metadata['help']}")
    return "\n".join(lines)


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Return {"train.lr": 3e-4, ...} of a configuration, in the order of its fields."""
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


DEFAULTS = flatten(Config())  # by their dotted names


def holds_pass_1(config: Config) -> bool:
    """Return whether the rule compares pass@1 of the training batches with that of the base."""
    rule = config.surgery.rule
    return rule == "floor" or (rule == "pcgrad" and config.surgery.restore > 0)


def parse_schedule(text: str | None) -> list[tuple[int, int]]:
    """Return [(step, k), ...] of "4@50,1@100"."""
    pairs = [part.split("@") for part in text.split(",")] if text else []
    return sorted((int(step), int(k)) for k, step in pairs)


def parse_constraint(text: str) -> tuple[str, float]:
    """Return ("eval/pass@8", 0.9) of "eval/pass@8>=0.9"."""
    name, sign, bound = text.partition(">=")
    if not sign or not name.strip():
        raise ValueError(text)
    return name.strip(), float(bound)


def shown(value: Any) -> str:
    text = "null" if value is None else str(value)
    return "".join(x if x.isprintable() else " " for x in text)


def first_line(error: Exception) -> str:
    return str(error).strip().replace("\n", " ")[:200]
