"""Evaluation of a policy on problems: sample, judge, and one record a problem."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from eval.policy import Policy
from eval.sampling import Decoding, sample
from eval.tasks import Population, Problem
from eval.verifier import Verifier


def evaluate(
    policy: Policy,
    verifier: Verifier,
    problems: Sequence[Problem],
    n: int,
    decoding: Decoding,
    seed: int,
    positions: Sequence[int] | None = None,
    population: Population | None = None,
) -> list[dict[str, Any]]:
    """Records {id, group, n, c, undecided, truncated, length, responses, p}, in the given order.

    `responses` counts each distinct text. `p` is the true success probability where the task knows
    it. `positions` are the problems' places in the whole evaluation, when this is a share of it.
    """
    rollout = sample(policy, [x.prompt for x in problems], n, decoding, seed, positions)
    verdicts = verifier(rollout.texts, [x.gold for x in problems for _ in range(n)])
    lengths = rollout.lengths.tolist()
    truncated = rollout.truncated.tolist()
    records = []
    for i, problem in enumerate(problems):
        rows = slice(i * n, (i + 1) * n)
        record = {
            "id": problem.id,
            "group": problem.group,
            "n": n,
            "c": sum(v is True for v in verdicts[rows]),
            "undecided": sum(v is None for v in verdicts[rows]),
            "truncated": sum(truncated[rows]),
            "length": sum(lengths[rows]) / n,
            "responses": dict(Counter(rollout.texts[rows]).most_common()),
        }
        if population is not None:
            record["p"] = population.of(problem)
        records.append(record)
    return records
