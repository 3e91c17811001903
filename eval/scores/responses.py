"""Generations from other programs: one JSON line per problem, {"id", "gold", "responses"}.

Optional fields are problem (or prompt), group, level, subject and truncated. A mapping such as
{"responses": "model_a.texts"} gives the path of a field with another name; dots lead into nested
objects. A single text counts as a list of one. Records of `eval.scores.evaluate` have this form and
can be scored again.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from eval.errors import Refusal
from eval.files import value_at
from eval.records import SLICES, Record
from eval.scores.evaluate import record
from eval.tasks.task import Problem
from eval.verify.verifier import Verifier

FIELDS = ("id", "gold", "responses", "problem", *SLICES, "truncated")
REQUIRED = ("id", "gold", "responses")
CHUNK = 64  # problems judged at a time, so that all workers have work


class BadResponses(Refusal):
    """A line that cannot be scored; the message names file, line and remedy."""


@dataclass(frozen=True)
class Generation:
    problem: Problem
    responses: list[str]
    truncated: list[bool] | None


def read_responses(path: Path, fields: Mapping[str, str]) -> Iterator[Generation]:
    """Yield the checked problems of a file: ids differ, and each has one response or more.

    The number of responses may differ between problems; pass@k then ends at the fewest.
    """
    seen: dict[str, int] = {}
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            place = f"{path}, line {number}"
            try:
                content = json.loads(line)
            except (ValueError, RecursionError) as error:
                why = f"not JSON ({error}); write one object per line"
                raise BadResponses(f"{place}: {why}") from None
            if not isinstance(content, dict):
                raise BadResponses(f"{place}: must be an object with {', '.join(REQUIRED)}")
            generation = _generation(content, fields, place)
            name = generation.problem.id
            if name in seen:
                before = f"id {name} is also in line {seen[name]}"
                raise BadResponses(f"{place}: {before}; put its responses into one line")
            seen[name] = number
            yield generation
    if not seen:
        raise BadResponses(f"{path}: holds no problem; write one JSON object per line")


def _generation(content: Mapping[str, Any], fields: Mapping[str, str], place: str) -> Generation:
    values = {name: value_at(content, fields.get(name, name)) for name in FIELDS}
    if "problem" not in fields and values["problem"] is None:
        values["problem"] = content.get("prompt")
    for name, value in values.items():
        if value is None and (name in REQUIRED or name in fields):
            wanted = fields.get(name, name)
            missing = f"{place}: has no {wanted}, but {', '.join(map(str, content))}"
            raise BadResponses(f"{missing}; name its field with --fields {name}=...")
    responses, truncated = values["responses"], values["truncated"]
    responses = [responses] if isinstance(responses, str) else responses
    if not isinstance(responses, list) or not all(isinstance(x, str) for x in responses):
        raise BadResponses(f"{place}: responses must be a text or a list of texts")
    if not responses:
        raise BadResponses(f"{place}: responses is empty; leave the problem out")
    if isinstance(truncated, list) and not all(isinstance(x, bool) for x in truncated):
        raise BadResponses(f"{place}: truncated must be a list of true or false; else leave it out")
    if not (isinstance(truncated, list) and len(truncated) == len(responses)):
        truncated = None  # a count, or not known for each response
    slices = {name: "" if values[name] is None else str(values[name]) for name in SLICES}
    prompt = "" if values["problem"] is None else str(values["problem"])
    problem = Problem(str(values["id"]), prompt, str(values["gold"]), **slices)
    return Generation(problem, responses, truncated)


def score_responses(
    generations: Iterator[Generation], verifier: Verifier, answer_after: str | None = None
) -> Iterator[list[Record]]:
    """Yield records as in `eval.scores.evaluate`, in the order of the file, some at a time.

    With `answer_after`, the verifier judges only the text after its last occurrence; a response
    without it has no answer. Lengths are in characters.
    """
    while chunk := list(islice(generations, CHUNK)):
        texts = [_answer(x, answer_after, "") for g in chunk for x in g.responses]
        golds = [judged_gold(g, answer_after) for g in chunk for _ in g.responses]
        judged = iter(verifier.judge(texts, golds))
        yield [
            record(
                g.problem,
                g.responses,
                list(islice(judged, len(g.responses))),
                list(map(len, g.responses)),
                g.truncated,
            )
            for g in chunk
        ]


def judged_gold(generation: Generation, answer_after: str | None) -> str:
    """Return the gold for the verifier; if it contains the mark, only the part after it."""
    gold = generation.problem.gold
    return _answer(gold, answer_after, gold)


def _answer(text: str, mark: str | None, otherwise: str) -> str:
    if mark is None:
        return text
    _, matched, answer = text.rpartition(mark)
    return answer if matched else otherwise


def parse_fields(pairs: Sequence[str]) -> dict[str, str]:
    """Return {"gold": "answer"} of ["gold=answer"]; a ValueError names the mistake."""
    fields = {}
    for pair in pairs:
        name, equals, path = pair.partition("=")
        if name not in FIELDS or not equals or not path:
            raise ValueError(f"--fields = {pair}: write NAME=PATH, NAME one of {', '.join(FIELDS)}")
        fields[name] = path
    return fields
