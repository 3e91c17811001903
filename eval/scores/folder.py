"""One evaluation in a folder: an interrupted one continues, a finished one is not repeated.

settings.json holds the settings, problems.jsonl one record per problem, and summary.json the
scores. A folder with other settings is refused and never overwritten.
"""

import fcntl
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TextIO, cast

from eval.errors import Refusal
from eval.files import (
    BadFile,
    append_lines,
    cut_lines,
    read_json,
    read_lines,
    whole_lines,
    write_json,
)
from eval.progress import progress
from eval.records import RECORD, Record


class BadFolder(Refusal):
    """A folder with other contents; the message is one line."""


@dataclass(frozen=True)
class Scoring:
    """The scoring of one evaluation; `produce(start)` yields records from `start` on, in parts."""

    label: str
    settings: Mapping[str, Any]
    total: int | None
    produce: Callable[[int], Iterator[list[Record]]]


def without_texts(record: Mapping[str, Any]) -> Record:
    """Return the part of a record that scores need, without the large prompts and responses."""
    return cast(Record, {k: x for k, x in record.items() if k not in ("prompt", "responses")})


COUNTS = {"n": int, "c": int}
AGAIN = "restore it from a copy, or cut it before that line, to have the rest made again"


class ScoreFolder:
    """The folder of one evaluation, locked until it is left."""

    def __init__(self, path: Path, settings: Mapping[str, Any]):
        self.path = path
        place = path / "problems.jsonl"
        begun = any(True for _ in whole_lines(place, COUNTS, AGAIN))
        self._lock = claim(path, settings, begun)
        with ExitStack() as failing:
            failing.push(self)
            self.records = [without_texts(r) for r in whole_lines(place, COUNTS, AGAIN)]
            summary, again = path / "summary.json", "remove it, to have it made again"
            done = read_json(summary, dict, again) if summary.exists() else {}
            self.finished = done.get("problems") == len(self.records)
            cut_lines(place, len(self.records))  # removes an unfinished last line
            failing.pop_all()

    def __enter__(self) -> "ScoreFolder":
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.close()

    def append(self, records: Sequence[Record]) -> None:
        append_lines(self.path / "problems.jsonl", records)

    def finish(self, summary: Mapping[str, Any]) -> None:
        write_json(self.path / "summary.json", summary)


def claim(path: Path, settings: Mapping[str, Any], begun: bool) -> TextIO:
    """Write `settings` into the folder, and lock it while the result is open.

    If an evaluation has `begun` under other settings, the folder is refused, and the message names
    every key that differs. A failed start leaves no lock.
    """
    saved = path / "settings.json"
    if saved.exists():
        old = read_json(saved, dict, "choose another --out") if begun else settings
        remedy = f"{path} holds another evaluation; choose another --out"
        different = [
            f"{key} = {settings.get(key)} (was {old.get(key)}): {remedy}"
            for key in {**old, **settings}
            if old.get(key) != settings.get(key)
        ]
        if different:
            raise BadFolder("\n".join(different))
    elif path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise BadFolder(f"--out = {path}: holds files already; name a new folder")
    try:
        path.mkdir(parents=True, exist_ok=True)
        with ExitStack() as failing:
            lock = failing.enter_context((path / ".lock").open("a"))
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            write_json(saved, settings)
            failing.pop_all()
    except BlockingIOError:
        raise BadFolder(f"--out = {path}: another process writes it; wait") from None
    except OSError as error:
        why = f"cannot be written ({error.strerror}); choose another"
        raise BadFolder(f"--out = {path}: {why}") from None
    return lock


RECORDS = "name a folder of score.py, a run, or a file of its records"


def recorded(path: Path, option: str) -> dict[str, Record]:
    """Return records by id of a score.py folder, a run or a file; errors name the `option`."""
    for place in (path, path / "problems.jsonl", path / "eval" / "before.jsonl"):
        if place.is_file():
            try:
                records = read_lines(place, dict, RECORDS)
            except BadFile as error:
                raise BadFolder(f"{option} = {error}") from None
            if not all(r.keys() >= RECORD.keys() for r in records):
                remedy = "generations are no records; score them first, with --out"
                raise BadFolder(f"{option} = {place}: {remedy}")
            return {r["id"]: cast(Record, r) for r in records}
    raise BadFolder(f"{option} = {path}: no records; {RECORDS}")


@cache
def fingerprint(path: str) -> str | None:
    """Return a digest of the weights in a local folder; None for a hub id."""
    digest = hashlib.sha256()
    files = sorted(Path(path).glob("*.safetensors"))
    for file in files:
        with file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()[:16] if files else None


def check_sweep(out: Path) -> None:
    """Refuse a folder for several evaluations if it holds one evaluation or other files."""
    summary = out / "summary.json"
    sweep = summary.exists() and "sweep" in read_json(summary, dict, "name a new folder")
    others = {x.name for x in out.iterdir() if x.is_file()} if out.is_dir() else set[str]()
    if out.is_file() or (others and not sweep):
        raise BadFolder(f"--out = {out}: holds files already; name a new folder")


def run(scoring: Scoring, folder: ScoreFolder | None) -> list[Record]:
    """Return all records without their texts; records already in the folder are not remade."""
    records = list(folder.records) if folder else []
    if folder and folder.finished:
        return records
    right, answers = (sum(r[name] for r in records) for name in ("c", "n"))
    with progress(scoring.total, len(records), scoring.label) as bar:
        for chunk in scoring.produce(len(records)):
            if folder:
                folder.append(chunk)
            records += map(without_texts, chunk)
            right, answers = (
                right + sum(r["c"] for r in chunk),
                answers + sum(r["n"] for r in chunk),
            )
            bar.set_postfix({"pass@1": f"{right / answers:.3f}"}, refresh=False)
            bar.update(len(chunk))
    return records
