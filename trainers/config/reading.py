"""Read a configuration: YAML with `extends:`, and key=value overrides."""

import difflib
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from eval.files import leaves
from trainers.config.aliases import answer
from trainers.config.arguments import CONFIGS
from trainers.config.values import KEYS, OPTIONS, ConfigError, first_line, kind, shown

# keys of earlier versions: the only value that they may still have, and the reason
RETIRED = {
    "train.top_p": (
        1,
        "must be 1, or the samples would not come from the policy that is trained; "
        "eval.top_p is free",
    )
}


def read(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Return the file's mapping, laid over the mapping of the file that it extends."""
    parent, content = _apart(path, seen)
    if parent is None:
        return content
    return _merged(read(parent, (*seen, path.resolve())), content)


def own_keys(path: Path) -> set[str]:
    """Return the keys that a readable file sets, or one that it extends outside the project."""
    if path.resolve().is_relative_to(CONFIGS):
        return set()
    parent, content = _apart(path)
    return {key for key, _ in leaves(content)} | (own_keys(parent) if parent else set())


def _apart(path: Path, seen: tuple[Path, ...] = ()) -> tuple[Path | None, dict[str, Any]]:
    """Return the file that a file extends, if it extends one, and its other lines."""
    given, path = path, path.resolve()
    if path in seen:
        raise ConfigError(
            f"extends = {path}: the files extend each other in a circle; remove one `extends:`"
        )
    if path.is_dir():
        raise ConfigError(f"--config = {path}: is a folder; name a file in it")
    try:
        content: Any = OmegaConf.to_container(OmegaConf.load(path))
    except FileNotFoundError:
        hint = f"give one, or a name that --list prints{_meant(given)}"
        raise ConfigError(f"--config = {path}: no such file; {hint}") from None
    except Exception as error:  # YAML, encoding: the fault lies in the file
        raise ConfigError(
            f"--config = {path}: not readable as YAML: {first_line(error)}; correct the file"
        ) from None
    if not isinstance(content, dict):
        raise ConfigError(f"--config = {path}: holds {shown(content)}; write `key: value` lines")
    parent = content.pop("extends", None)
    if parent is None:
        return None, content
    if not isinstance(parent, str):
        raise ConfigError(
            f"extends = {shown(parent)}: must be the name of one file, relative to {path}"
        )
    return path.parent / parent, content


def _meant(path: Path) -> str:
    """Return a hint at the configuration of the project whose name is nearest to the file's."""
    names = [str(x.relative_to(CONFIGS).with_suffix("")) for x in sorted(CONFIGS.rglob("*.yaml"))]
    given = str(path.with_suffix("")).removeprefix("configs/"), path.stem
    near = [x for name in given for x in difflib.get_close_matches(name, names, 1, 0.75)]
    return f" (did you mean {near[0]}?)" if near else ""


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    result = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = _merged(result[key], value) if both else value
    return result


def overridden(overrides: Iterable[str]) -> Iterator[tuple[str, Any]]:
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


def set_key(node: Any, key: str, value: Any) -> str | None:
    """Set one leaf; return the mistake in its value, if there is one."""
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
    if key in RETIRED:
        only, why = RETIRED[key]
        return None if value == only and not isinstance(value, bool) else why
    if key not in KEYS:
        return _unknown(key)
    if isinstance(value, bool) and KEYS[key].type is not bool:
        return f"must be {kind(key)}, not a truth value"
    if isinstance(value, float) and not math.isfinite(value):
        return "must be a finite number"
    if isinstance(value, str) and "\0" in value:
        return "must be a text without the character NUL"
    try:
        OmegaConf.update(node, key, value, merge=False)
    except OmegaConfBaseException:
        return f"must be {kind(key)}"
    return None


def _unknown(key: str) -> str:
    """Return a message that suggests a known key for an unknown one."""
    inside = [x for x in KEYS if x.startswith(f"{key}.")]
    return f"is a section; give its keys, such as {inside[0]}" if inside else answer(key)
