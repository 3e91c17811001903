"""Evaluation of a policy on problems: sample, judge, and write one record per problem."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from eval.policy.policy import Policy
from eval.records import SLICES, Record, Slices
from eval.rollout.rollout import Decoding
from eval.rollout.sample import sample
from eval.tasks.task import Population, Problem
from eval.verify.verifier import Judged, Verifier


@dataclass(frozen=True)
class Draws:
    """The draw of n answers per problem from the random streams of a seed."""

    n: int
    decoding: Decoding
    seed: int


def evaluate(
    policy: Policy,
    verifier: Verifier,
    problems: Sequence[Problem],
    draws: Draws,
    positions: Sequence[int] | None = None,
    population: Population | None = None,
) -> list[Record]:
    """Return one `record` per problem, in the given order.

    `positions` are the problems' positions in the complete evaluation, if this is a part of it.
    """
    if not problems:  # a rank gets none if there are fewer problems than ranks
        return []
    n, prompts = draws.n, [x.prompt for x in problems]
    rollout = sample(policy, prompts, n, draws.decoding, draws.seed, positions)
    judged = verifier.judge(rollout.texts, [x.gold for x in problems for _ in range(n)])
    lengths, truncated = rollout.lengths.tolist(), rollout.truncated.tolist()
    records = []
    for i, problem in enumerate(problems):
        rows = slice(i * n, (i + 1) * n)
        scored = record(problem, rollout.texts[rows], judged[rows], lengths[rows], truncated[rows])
        if population is not None:
            scored["p"] = population.of(problem)
        records.append(scored)
    return records


def record(
    problem: Problem,
    responses: Sequence[str],
    judged: Sequence[Judged],
    lengths: Sequence[int],
    truncated: Sequence[bool] | None,
) -> Record:
    """Return the record of a problem, enough to score it again.

    `wrong` counts each readable wrong answer. `evaluate` adds p, the true success probability, if
    the task knows it.
    """
    wrong = Counter(answer for verdict, answer in judged if verdict is not True and answer)
    slices: Slices = {}
    for name in SLICES:
        if getattr(problem, name):
            slices[name] = getattr(problem, name)
    return {
        "id": problem.id,
        **slices,
        "prompt": problem.prompt,
        "gold": problem.gold,
        "n": len(responses),
        "c": sum(verdict is True for verdict, _ in judged),
        "undecided": sum(verdict is None for verdict, _ in judged),
        "truncated": None if truncated is None else sum(truncated),
        "length": sum(lengths) / len(responses),
        "verdicts": [verdict for verdict, _ in judged],
        "wrong": dict(wrong.most_common()),
        "responses": list(responses),
    }
