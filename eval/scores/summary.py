"""The summary of an evaluation: scores, and the figures that show how reliable they are."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from eval.records import SLICES, Record
from eval.scores.difficulty import LEVELS, difficulty
from eval.scores.passk import ladder, majority_scores, scores, standard_error, which_too_few
from surgery.objectives import pass_at_k


def one_sided(right: int, answers: int, where: str) -> str | None:
    """Return a line on answers that are all wrong, or all right; None for any others.

    `where` says where the answers are, such as "in a/problems.jsonl".
    """
    if right == 0:
        why = f"no answer of {answers:,} was right, so there is no gradient"
        return f"{why}; look at the answers {where}, at the prompt, the verifier and the model"
    if right == answers:
        why = f"every answer of {answers:,} was right, so there is no gradient"
        return f"{why}; look at the answers {where} and at the verifier, or take harder problems"
    return None


def warn_if_one_sided(records: Sequence[Record], where: str) -> None:
    """Print the line of `one_sided` as a warning."""
    line = one_sided(sum(r["c"] for r in records), sum(r["n"] for r in records), where)
    if line:
        print(f"warning: {line}", file=sys.stderr)


def summarise(
    records: Sequence[Record], k: int | None, base: Mapping[str, Record] | None = None
) -> dict[str, Any]:
    """Return the scores, and the figures that show how reliable they are.

    The scores are pass@k and maj@k for k = 1, 2, 4, ... up to `k`, or up to the fewest samples of a
    problem, overall and by slice. `base`, records by id of another model, adds slices by the
    difficulty of each problem for that model.
    """
    n = min(r["n"] for r in records)
    ks = ladder(k or n)
    answers = sum(r["n"] for r in records)
    known = [r["truncated"] for r in records if r["truncated"] is not None]
    summary: dict[str, Any] = {
        "scores": scores(records, ks),
        "n": n,
        "most_n": max(r["n"] for r in records),
        "problems": len(records),
        "too_few": which_too_few(records, ks),
        "majority": majority_scores(records, ks),
        "standard_error": standard_error(records),
        "distinct": sum(len(r["wrong"]) + (r["c"] > 0) for r in records) / len(records),
        "length": sum(r["length"] for r in records) / len(records),
        "truncated_share": sum(known) / answers if len(known) == len(records) else None,
        "undecided_share": sum(r["undecided"] for r in records) / answers,
    }
    if all("p" in r for r in records):
        p = torch.tensor([r["p"] for r in records], dtype=torch.float64)
        # of these problems; "exact" is the name of the population's, which a run has
        summary["expected"] = {f"pass@{k}": float(pass_at_k(p, k).mean()) for k in ks}
    summary["slices"] = [
        {
            "slice": name,
            "problems": len(part),
            **scores(part, sorted({1, ks[-1]})),
            **majority_scores(part, [ks[-1]]),
            "too_few": which_too_few(part, sorted({1, ks[-1]})),
        }
        for name, part in _slices(records, base)
    ]
    return summary


def _slices(
    records: Sequence[Record], base: Mapping[str, Record] | None
) -> Iterator[tuple[str, list[Record]]]:
    for kind in SLICES:
        values = sorted({r[kind] for r in records if kind in r})
        for value in values:
            yield f"{kind} {value}", [r for r in records if r.get(kind) == value]
    if base is not None:
        levels = {name: difficulty(r) for name, r in base.items()}
        for level in LEVELS:
            part = [r for r in records if levels.get(r["id"]) == level]
            if part:
                yield f"{level} for the base", part
