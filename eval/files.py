"""Files that are whole or not there: JSON and JSON lines, replaced in one move."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from eval.errors import Refusal

COPY = "restore it from a copy"
# what must be there: a type, the shapes of keys ("*": each; "x?": x where it is set), or [a shape]
Shape = Any


class BadFile(Refusal, ValueError):
    """A file that is not as it was written, in one line that names file and remedy."""


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


def read_json(path: Path, shape: Shape, remedy: str = COPY) -> Any:
    """The content, refused if it is not of the shape."""
    return _parsed(path.read_bytes(), shape, str(path), remedy)


def read_lines(path: Path, shape: Shape = dict, remedy: str = COPY) -> list[dict[str, Any]]:
    """All records; none where there is no file. A line that is none of the shape is refused."""
    return list(_records(path, shape, remedy, cut=False))


def whole_lines(path: Path, shape: Shape = dict, remedy: str = COPY) -> Iterator[dict[str, Any]]:
    """The records but for a last one that has no end: it was being written in a life that was cut
    short. Any other line that is none of the shape is refused.
    """
    yield from _records(path, shape, remedy, cut=True)


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


def _records(path: Path, shape: Shape, remedy: str, cut: bool) -> Iterator[dict[str, Any]]:
    """The records of a file, if there is one; with `cut`, but for a last line without an end."""
    if not path.exists():
        return
    with path.open("rb") as file:  # no splitlines, for which other characters end a line too
        for number, line in enumerate(file, 1):
            if cut and not line.endswith(b"\n"):
                return
            yield _parsed(line, shape, f"{path}, line {number}", remedy)


def _parsed(text: bytes, shape: Shape, place: str, remedy: str) -> Any:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        why = getattr(error, "msg", error)  # without its place, which is counted in this text
        raise BadFile(f"{place}: is damaged ({why}); {remedy}") from None
    for wrong in _misfits(content, shape):
        raise BadFile(f"{place}: is damaged ({wrong}); {remedy}")
    return content


def _misfits(content: Any, shape: Shape, name: str = "it") -> Iterator[str]:
    """All that is missing or of another type."""
    kind: Any = type(shape) if isinstance(shape, dict | list) else shape
    if not isinstance(content, kind):
        yield f"{name} is {content!r:.40}"
    elif isinstance(shape, list):
        for x in content:
            yield from _misfits(x, shape[0], name)
    elif isinstance(shape, dict):
        for key, inner in shape.items():
            for x in _places(content, key):
                if x in content:
                    yield from _misfits(content[x], inner, f"{name}.{x}".removeprefix("it."))
                else:
                    yield f"{name} has no {x}"


def _places(content: Any, key: str) -> list[str]:
    """The keys of which a shape's key speaks."""
    if key == "*":
        return list(content)
    name = key.removesuffix("?")
    return [name] if name == key or content.get(name) else []
