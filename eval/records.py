"""Records: one problem with its answers, in memory and in files."""

from pathlib import Path
from typing import Literal, NotRequired, TypedDict, cast

from eval.files import COPY, read_lines

Slice = Literal["group", "level", "subject"]
SLICES: tuple[Slice, ...] = ("group", "level", "subject")

# required keys; the scores need no others
RECORD = {"id": str | int, "n": int, "c": int, "verdicts": list}


class Slices(TypedDict, total=False):
    """The slices of the problems that this problem belongs to."""

    group: str
    level: str
    subject: str


class Record(Slices):
    """n answers to one problem, c of them right; `eval.scores.evaluate` adds further keys."""

    id: str
    n: int
    c: int
    verdicts: list[bool | None]  # None: undecided
    prompt: NotRequired[str]
    gold: NotRequired[str]
    undecided: NotRequired[int]
    truncated: NotRequired[int | None]  # None: not known
    length: NotRequired[float]  # mean over the answers
    wrong: NotRequired[dict[str, int]]  # wrong answer -> its count
    responses: NotRequired[list[str]]
    p: NotRequired[float]  # the true success probability, if the task knows it
    tokens: NotRequired[tuple[list[int], list[list[int]]]]  # those of the prompt, of each answer


def read_records(path: Path, remedy: str = COPY) -> list[Record]:
    """Return all records of a file; none if there is no file."""
    return cast(list[Record], read_lines(path, RECORD, remedy))
