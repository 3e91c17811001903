"""JSON and JSON-lines files that are replaced in one move: complete or absent."""

import errno
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from eval.errors import Refusal

COPY = "restore it from a copy"
# a required type, the shapes of keys ("*": each key; "x?": x if it is set), or [shape of items]
Shape = Any


class BadFile(Refusal, ValueError):
    """A damaged file; the message is one line with file and remedy."""


def replace_text(path: Path, text: str) -> None:
    """Write a text file in one move, so that it is never incomplete."""
    part = path.with_name(f".{path.name}.part")
    with part.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def sync(path: Path) -> None:
    """Force a file's contents, or a folder's names, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def usual_permissions(path: Path) -> None:
    """Give a file, or a folder with its contents, the permissions of the user's umask.

    safetensors makes files, and tempfile makes folders, that only their owner may read.
    """
    umask = os.umask(0o077)  # the umask can be read only by a change
    os.umask(umask)
    for place in [path, *path.rglob("*")]:
        mode = place.stat().st_mode
        wanted = (0o777 if place.is_dir() else 0o666) & ~umask
        if mode & 0o777 != wanted:
            with suppress(PermissionError):  # on a disk without permissions
                place.chmod(mode & 0o7000 | wanted)  # keeps set-group-ID of a folder


@contextmanager
def system_errors(place: Path) -> Iterator[None]:
    """Turn a SafetensorError, such as that of a full disk, into the system's OSError."""
    try:
        yield
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        code = int(number[1]) if number else errno.EIO
        raise OSError(code, os.strerror(code) if number else str(error), str(place)) from error


def write_json(path: Path, content: Any) -> None:
    replace_text(path, json.dumps(content, indent=1) + "\n")


def write_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    replace_text(path, _lines(records))


def append_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    with path.open("a") as file:
        file.write(_lines(records))


def read_json(path: Path, shape: Shape, remedy: str = COPY) -> Any:
    """Return the content; refuse it if it does not have the shape."""
    return _parsed(path.read_bytes(), shape, str(path), remedy)


def read_lines(path: Path, shape: Shape = dict, remedy: str = COPY) -> list[dict[str, Any]]:
    """Return all records, none without a file; refuse a line that does not have the shape."""
    return list(_records(path, shape, remedy, cut=False))


def whole_lines(path: Path, shape: Shape = dict, remedy: str = COPY) -> Iterator[dict[str, Any]]:
    """Yield the records except an unfinished last line, left by an interrupted process.

    Any other line that does not have the shape is refused.
    """
    yield from _records(path, shape, remedy, cut=True)


def cut_lines(path: Path, count: int) -> None:
    """Keep the first `count` lines of a file; make the file if it does not exist."""
    with path.open("a+b") as file:
        file.seek(0)
        for _ in range(count):
            file.readline()
        file.truncate(file.tell())


def leaves(content: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield ("train.lr", 3e-4), ... of nested mappings such as a configuration."""
    for key, value in content.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def value_at(content: Mapping[str, Any], path: str) -> Any:
    """Return the value at a dotted path or of a key with dots; None if there is none."""
    value: Any = content
    for part in [path] if path in content else path.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _lines(records: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def _records(path: Path, shape: Shape, remedy: str, cut: bool) -> Iterator[dict[str, Any]]:
    """Yield the records of a file, if it exists; with `cut`, ignore an unfinished last line."""
    if not path.exists():
        return
    with path.open("rb") as file:  # not splitlines, which also splits at other characters
        for number, line in enumerate(file, 1):
            if cut and not line.endswith(b"\n"):
                return
            yield _parsed(line, shape, f"{path}, line {number}", remedy)


def _parsed(text: bytes, shape: Shape, place: str, remedy: str) -> Any:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        why = getattr(error, "msg", error)  # without the position, which is relative to this text
        raise BadFile(f"{place}: is damaged ({why}); {remedy}") from None
    for wrong in _misfits(content, shape):
        raise BadFile(f"{place}: is damaged ({wrong}); {remedy}")
    return content


def _misfits(content: Any, shape: Shape, name: str = "it") -> Iterator[str]:
    """Yield all values that are missing or of another type."""
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
    """Return the keys of the content that a key of the shape stands for."""
    if key == "*":
        return list(content)
    name = key.removesuffix("?")
    return [name] if name == key or content.get(name) else []
