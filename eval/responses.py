"""Scoring generations that were made elsewhere: one JSON line a problem, {"id", "gold",
"responses"}.
"""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from eval.verifier import Verifier


class BadResponses(Exception):
    """A line that cannot be scored; the message names file, line and remedy."""


def read_responses(path: Path) -> Iterator[dict[str, Any]]:
    """The problems of a file, one at a time, checked. Ids must differ and no list may be empty."""
    seen: set[str] = set()
    with path.open() as file:
        for number, line in enumerate(file, 1):
            place = f"{path}, line {number}"
            try:
                problem = json.loads(line)
            except ValueError as error:
                raise BadResponses(
                    f"{place}: not JSON ({error}); write one object a line"
                ) from None
            missing = {"id", "gold", "responses"} - set(
                problem if isinstance(problem, dict) else ()
            )
            if missing:
                raise BadResponses(f"{place}: has no {', '.join(sorted(missing))}; add it")
            responses = problem["responses"]
            if not isinstance(responses, list) or not all(isinstance(x, str) for x in responses):
                raise BadResponses(f"{place}: responses must be a list of texts")
            if not responses:
                raise BadResponses(f"{place}: responses is empty; leave the problem out")
            if str(problem["id"]) in seen:
                raise BadResponses(f"{place}: id {problem['id']} was met before; ids must differ")
            seen.add(str(problem["id"]))
            yield problem


def score_responses(path: Path, verifier: Verifier) -> list[dict[str, Any]]:
    """Records as `eval.harness.evaluate` makes them, in the order of the file."""
    records = []
    for problem in read_responses(path):
        responses, gold = problem["responses"], str(problem["gold"])
        verdicts = verifier(responses, [gold] * len(responses))
        records.append(
            {
                "id": str(problem["id"]),
                "group": str(problem.get("group", "")),
                "n": len(responses),
                "c": sum(v is True for v in verdicts),
                "undecided": sum(v is None for v in verdicts),
                "gold": gold,
                "responses": dict(Counter(responses).most_common()),
            }
        )
    if not records:
        raise BadResponses(f"{path}: holds no problem; write one JSON object a line")
    return records
