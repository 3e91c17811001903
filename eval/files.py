"""Files that are whole or not there: JSON and JSON lines, replaced in one move."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any


def replace_text(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}.part")
    with part.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def sync(path: Path) -> None:
    """A file's contents, or a folder's names, on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def usual_permissions(path: Path) -> None:
    """Give a file, or a folder and all in it, the permissions that the user's umask asks for:
    safetensors makes files, and tempfile folders, that only their owner may read.
    """
    umask = os.umask(0o077)  # it can be read only by setting it
    os.umask(umask)
    for place in [path, *path.rglob("*")]:
        mode = place.stat().st_mode
        wanted = (0o777 if place.is_dir() else 0o666) & ~umask
        if mode & 0o777 != wanted:
            with suppress(PermissionError):  # of a disk that knows no permissions
                place.chmod(mode & 0o7000 | wanted)  # a folder may hand its group on


def write_json(path: Path, content: Any) -> None:
    replace_text(path, json.dumps(content, indent=1) + "\n")


def write_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    replace_text(path, _lines(records))


def append_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    with path.open("a") as file:
        file.write(_lines(records))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """All records; none where there is no file."""
    if not path.exists():
        return []
    with path.open() as file:  # no splitlines, for which other characters end a line too
        return [json.loads(line) for line in file]


def whole_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The records before the first line that is not whole: half written, or damaged."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for line in file:
            try:
                record = json.loads(line)
            except ValueError:
                return
            if not line.endswith(b"\n"):
                return
            yield record


def cut_lines(path: Path, count: int) -> None:
    """Keep the first lines of a file, which is made where there is none."""
    with path.open("a+b") as file:
        file.seek(0)
        for _ in range(count):
            file.readline()
        file.truncate(file.tell())


def leaves(content: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """("train.lr", 3e-4), ... of nested mappings such as a configuration."""
    for key, value in content.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def value_at(content: Mapping[str, Any], path: str) -> Any:
    """The value at a dotted path, or of a key that has dots itself; None where there is none."""
    value: Any = content
    for part in [path] if path in content else path.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _lines(records: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)
