"""Reading a configuration: YAML with `extends:`, key=value overrides, and every mistake in one go.

A mistake is a `ConfigError` whose lines each name key, value and remedy. Nothing here loads a
model.
"""

import difflib
import math
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from eval.files import leaves, replace_text
from trainers.schema import Config

OPTIONS = ("task.options", "task.fields", "surgery.options")  # the user's own names: any key


class ConfigError(Exception):
    """One line a mistake."""


def refuse(error: Exception) -> int:
    """Say what is wrong, once; the exit code. The launcher ends the ranks of its host when one
    stops, so the one that speaks goes first; those of other hosts must be met to be told.
    """
    if os.environ.get("LOCAL_SIZE") != os.environ.get("WORLD_SIZE"):
        from trainers import watch
        from trainers.engine import start_ranks

        with suppress(ConfigError):  # where they cannot meet, each host refuses by itself
            start_ranks(threads=1)
        return watch.leave(2, error)
    if os.environ.get("LOCAL_RANK", "0") != "0":
        time.sleep(60)
    else:
        print(error, file=sys.stderr)
    return 2


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """The configuration of a file and its overrides, complete and checked."""
    node = OmegaConf.structured(Config)
    mistakes = []
    given = [*leaves(_read(Path(path))), *_overrides(overrides)]
    for key, value in given:
        mistake = _set(node, key, value)
        if mistake:
            mistakes.append(f"{key} = {shown(value)}: {mistake}")
    try:
        config = OmegaConf.to_object(node)
    except OmegaConfBaseException as error:
        key = str(error.full_key).partition("[")[0]
        why = str(error).partition("\n")[0]
        mistakes.append(f"{key} = {shown(dict(given).get(key))}: {why}; correct the interpolation")
        raise ConfigError("\n".join(mistakes)) from None
    assert isinstance(config, Config)
    if config.run.dir is None:
        config.run.dir = f"runs/{run_name(Path(path))}/seed{config.seed}"
    config.run.dir = os.path.expanduser(config.run.dir)  # not a folder of the name ~
    if config.eval.k is None:
        config.eval.k = config.objective.k
    if config.diagnose.k is None:
        config.diagnose.k = config.diagnose.samples

    from trainers.contradictions import contradictions, mistakes_of_own_rule  # needs torch

    outside = [*_out_of_range(config)]
    told = {line.partition(" = ")[0] for line in outside}  # such a value contradicts by itself
    mistakes += outside
    mistakes += [line for line in contradictions(config) if line.partition(" = ")[0] not in told]
    mistakes = mistakes or [*mistakes_of_own_rule(config)]
    if mistakes:
        raise ConfigError("\n".join(mistakes))
    return config


def is_root(path: Path) -> bool:
    """Whether others extend it: base.yaml, or x.yaml beside a folder x/ of its variants."""
    return path.stem == "base" or path.with_suffix("").is_dir()


def run_name(path: Path) -> str:
    """The file's name; of x/variant.yaml, a variant of x.yaml, x/variant."""
    folder = path.resolve().parent
    of_root = folder.with_name(f"{folder.name}.yaml").is_file()
    return f"{folder.name}/{path.stem}" if of_root else path.stem


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


def save_config(config: Config, path: Path) -> None:
    replace_text(path, OmegaConf.to_yaml(OmegaConf.structured(config)))


FREE = ("train.steps", "run.", "logging.", "diagnose.")  # what a resumed run may change
OF_BASE = (  # all that the evaluation before training depends on
    *("model.", "task.", "train.max_new_tokens", "train.rollouts", "eval.problems"),
    *("eval.samples", "eval.temperature", "eval.top_p", "eval.seed"),
)


def differences(config: Config, path: Path, among: Sequence[str] = ("",)) -> list[str]:
    """The keys in which the saved configuration differs, of those that begin as `among` says. A key
    that is newer than the folder has its default there.
    """
    saved = flatten(Config()) | dict(leaves(_read(path)))
    now = flatten(config)
    return [
        f"{key} = {shown(now.get(key))} (was {shown(saved.get(key))})"
        for key in now | saved
        if saved.get(key) != now.get(key)
        and not key.startswith(FREE)
        and key.startswith(tuple(among))
    ]


def _read(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The file's mapping, laid over the one that it extends."""
    path = path.resolve()
    if path in seen:
        raise ConfigError(
            f"extends = {path}: the files extend each other in a circle; remove one `extends:`"
        )
    if path.is_dir():
        raise ConfigError(f"--config = {path}: is a folder; name a file in it")
    try:
        content: Any = OmegaConf.to_container(OmegaConf.load(path))
    except FileNotFoundError:
        raise ConfigError(
            f"--config = {path}: no such file; configs/ of the project holds examples"
        ) from None
    except Exception as error:  # YAML, encoding, a folder: all are the file's fault
        raise ConfigError(
            f"--config = {path}: not readable as YAML: {first_line(error)}; correct the file"
        ) from None
    if not isinstance(content, dict):
        raise ConfigError(f"--config = {path}: holds {shown(content)}; write `key: value` lines")
    parent = content.pop("extends", None)
    if parent is None:
        return content
    if not isinstance(parent, str):
        raise ConfigError(
            f"extends = {shown(parent)}: must be the name of one file, relative to {path}"
        )
    return _merged(_read(path.parent / parent, (*seen, path)), content)


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    result = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = _merged(result[key], value) if both else value
    return result


def _overrides(overrides: Iterable[str]) -> Iterator[tuple[str, Any]]:
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise ConfigError(
                f"{text}: not understood; overrides are written key=value, such as train.lr=1e-4"
            )
        try:
            parsed: Any = OmegaConf.to_container(OmegaConf.create(f"x: {value}"))
            yield key.strip(), parsed["x"]
        except Exception as error:
            raise ConfigError(
                f"{key} = {value}: not readable as YAML: {first_line(error)}; quote the value"
            ) from None


def _set(node: Any, key: str, value: Any) -> str | None:
    """Set one leaf; returns what is wrong with it."""
    if key in OPTIONS and not isinstance(value, dict):
        return f"holds names of your own; give them as {key}.name=value"
    if key in OPTIONS or key.rpartition(".")[0] in OPTIONS:
        texts = value.values() if isinstance(value, dict) else [value]
        if key.startswith("task.fields") and not all(isinstance(x, str) for x in texts):
            return "must be the names of fields, as texts"
        try:
            OmegaConf.update(node, key, value, force_add=True)
        except OmegaConfBaseException as error:
            return f"{first_line(error)}; give a single value"
        return None
    known = flatten(Config())
    sections = {name.rpartition(".")[0] for name in known} - {""}
    if key in sections:
        example = next(name for name in known if name.startswith(f"{key}."))
        return f"is a section; give its keys, such as {example}"
    if key not in known:
        near = difflib.get_close_matches(key, known, 1, 0.5) or [
            k for k in known if k.endswith("." + key)
        ]
        remedy = f"the nearest is {near[0]}" if near else "remove it"
        return f"unknown key; {remedy}"
    default = known[key]
    if isinstance(value, bool) and not isinstance(default, bool):
        return f"must be {_kind(key)}, not a truth value"
    if isinstance(value, float) and not math.isfinite(value):
        return "must be a finite number"
    if isinstance(value, str) and "\0" in value:
        return "must be a text without the character NUL"
    try:
        OmegaConf.update(node, key, value, merge=False)
    except OmegaConfBaseException:
        return f"must be {_kind(key)}"
    return None


def _kind(key: str) -> str:
    owner: Any = Config
    *path, name = key.split(".")
    for part in path:
        owner = next(f.type for f in fields(owner) if f.name == part)
    kind = next(f.type for f in fields(owner) if f.name == name)
    names: dict[Any, str] = {
        int: "a whole number",
        float: "a number",
        str: "a text",
        bool: "true or false",
    }
    if kind == list[str]:
        return "a list, such as [4, 5]"
    options = getattr(kind, "__args__", (kind,))
    return " or ".join(names.get(option, "null") for option in options)


def _out_of_range(section: Any, prefix: str = "") -> Iterator[str]:
    for f in fields(section):
        value = getattr(section, f.name)
        if is_dataclass(value):
            yield from _out_of_range(value, f"{prefix}{f.name}.")
            continue
        bounds = f.metadata
        if value is None:
            continue
        line = f"{prefix}{f.name} = {shown(value)}: must be"
        if "one of" in bounds and value not in bounds["one of"]:
            near = difflib.get_close_matches(value, bounds["one of"], 1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            yield f"{line} one of {', '.join(bounds['one of'])}{hint}"
        if "at least" in bounds and not value >= bounds["at least"]:
            yield f"{line} at least {bounds['at least']}"
        if "above" in bounds and not value > bounds["above"]:
            yield f"{line} above {bounds['above']}"
        if "at most" in bounds and not value <= bounds["at most"]:
            yield f"{line} at most {bounds['at most']}"


def holds_pass_1(config: Config) -> bool:
    """Whether the rule holds the training batches' pass@1 against that of the base."""
    rule = config.surgery.rule
    return rule == "floor" or (rule == "pcgrad" and config.surgery.gain > 0)


def parse_schedule(text: str | None) -> list[tuple[int, int]]:
    """[(step, k), ...] of "4@50,1@100"."""
    pairs = [part.split("@") for part in text.split(",")] if text else []
    return sorted((int(step), int(k)) for k, step in pairs)


def check_ranks(config: Config, ranks: int) -> None:
    """Every rank needs a prompt of its own."""
    for key in ("train.prompts", "eval.problems"):
        value = flatten(config)[key]
        if value < ranks:
            raise ConfigError(
                f"{key} = {value}: fewer than the {ranks} ranks; raise it or use fewer"
            )


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
