"""Records: one problem and its answers, as evaluations make them and files hold them."""

from pathlib import Path
from typing import Literal, NotRequired, TypedDict, cast

from eval.files import COPY, read_lines

Slice = Literal["group", "level", "subject"]
SLICES: tuple[Slice, ...] = ("group", "level", "subject")

# each must have these; the scores need nothing else
RECORD = {"id": str | int, "n": int, "c": int, "verdicts": list}


class Slices(TypedDict, total=False):
    """The parts of the problems that this one belongs to."""

    group: str
    level: str
    subject: str


class Record(Slices):
    """n answers to one problem, c of them right; more where `eval.scores.evaluate` made it."""

    id: str
    n: int
    c: int
    verdicts: list[bool | None]  # None: undecided
    prompt: NotRequired[str]
    gold: NotRequired[str]
    undecided: NotRequired[int]
    truncated: NotRequired[int | None]  # None: not known
    length: NotRequired[float]  # mean over the answers
    wrong: NotRequired[dict[str, int]]  # how often each wrong answer was given
    responses: NotRequired[list[str]]
    p: NotRequired[float]  # the true success probability, where the task knows it
    tokens: NotRequired[tuple[list[int], list[list[int]]]]  # the prompt's, each answer's


def read_records(path: Path, remedy: str = COPY) -> list[Record]:
    """All records of a file; none where there is no file."""
    return cast(list[Record], read_lines(path, RECORD, remedy))
