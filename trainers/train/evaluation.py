"""The evaluation of the policy under training, over all ranks, and the summary of a run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.files import read_lines
from eval.policy.streams import derive_seed
from eval.records import Record, read_records
from eval.scores.difficulty import by_difficulty
from eval.scores.evaluate import Draws, evaluate
from eval.scores.passk import changes, ladder, problem_scores, scores, which_too_few
from eval.tasks.task import Population, Problem
from eval.verify.verifier import Verifier
from trainers.engine.engine import Engine
from trainers.job import Job
from trainers.train.base_rates import BaseRates


def judged(
    engine: Engine,
    verifier: Verifier,
    problems: Sequence[Problem],
    draws: Draws,
    population: Population | None = None,
) -> list[Record]:
    """Return one record per problem, in order, on every rank; the ranks share the problems."""
    mine = range(engine.rank, len(problems), engine.world)
    with engine.sampling() as policy:
        own = [problems[i] for i in mine]
        records = evaluate(policy, verifier, own, draws, mine, population)
    return engine.list_in_place(mine, records, len(problems))


class Evaluation:
    """The same problems and the same random stream each time, so that changes are paired."""

    def __init__(self, job: Job, verifier: Verifier, engine: Engine):
        assert job.config.eval.k is not None
        self.config, self.job, self.task = job.config, job, job.task
        self.verifier, self.engine = verifier, engine
        self.ks = ladder(job.config.eval.k)
        self._knows = True  # False when the task has no true success probabilities

    def __call__(self, known: list[Record] | None = None) -> tuple[list[Record], dict[str, float]]:
        """Return (one record per problem, the scalars); `known` records are not made again."""
        population = self._population()
        records = known or self.records(self.task.evaluation(self.config.eval.problems), population)
        values = {f"eval/pass@{k}": float(problem_scores(records, k).mean()) for k in self.ks}
        return records, values | self.exact(population)

    def records(
        self, problems: Sequence[Problem], population: Population | None = None
    ) -> list[Record]:
        """Return one record per problem, in order, on every rank."""
        options = self.config.eval
        how = self.job.decoding(options.temperature, options.top_p, self.job.eval_tokens)
        draws = Draws(options.samples, how, derive_seed("eval", options.seed))
        return judged(self.engine, self.verifier, problems, draws, population)

    def exact(self, population: Population | None = None) -> dict[str, float]:
        """Return the true pass@k if the task knows them."""
        population = population or self._population()
        if population is None:
            return {}
        return {f"exact/{name}": x for name, x in population.pass_at(self.ks).items()}

    def base_rates(self, records: Sequence[Record], overall: float) -> BaseRates:
        """Return the policy's success rates, true ones if the task knows them, else of records."""
        population = self._population()
        if population is not None:
            return BaseRates.of_population(population, overall)
        return BaseRates.of_records(records, overall)

    def _population(self) -> Population | None:
        """Return the true success probabilities if task and decoding have any."""
        options = self.config.eval
        cut = options.top_p < 1 or self.job.eval_tokens < self.job.max_new_tokens
        if not self._knows or options.temperature == 0 or cut:
            return None
        with self.engine.policy() as policy:
            population = self.task.success(policy, options.temperature)
        # a task without them is asked once: under ZeRO-3 each call gathers the model
        self._knows = population is not None
        return population

    def summary(self, folder: Path, seconds: float) -> dict[str, Any]:
        """Return the contents of summary.json, computed from the files of the run."""
        config = self.config
        before, after = (
            read_records(folder / "eval" / f"{name}.jsonl") for name in ("before", "after")
        )
        history = read_lines(folder / "metrics.jsonl")
        names = [f"pass@{k}" for k in self.ks]
        few = {name for x in (before, after) for name in which_too_few(x, self.ks)}
        measured = [x for x in history if "surgery/dot" in x]
        cosines = [x["surgery/cosine"] for x in measured if "surgery/cosine" in x]
        summary: dict[str, Any] = {
            "run": folder.parent.name if folder.name.startswith("seed") else folder.name,
            "seed": config.seed,
            "task": config.task.name,
            "k": self.ks[-1],
            "steps": config.train.steps,
            "seconds": round(seconds, 1),
            "world_size": self.engine.world,
            "before": scores(before, self.ks),
            "after": scores(after, self.ks),
            "change": changes(before, after, self.ks),
            "too_few": [name for name in names if name in few],
            "difficulty": by_difficulty(before, after),
        }
        if "exact/pass@1" in history[-1]:
            first, last = (
                {name: x[f"exact/{name}"] for name in names} for x in (history[0], history[-1])
            )
            points = [(x["pass@1"], x[names[-1]]) for x in (first, last)]
            summary["exact"] = {
                "before": first,
                "after": last,
                "lowest_pass@1": min(x["exact/pass@1"] for x in history),
                "frontier_share": self.task.frontier_share(points[0], points[1], self.ks[-1]),
            }
        summary["conflict"] = None
        if measured:
            summary["conflict"] = {
                "steps": len(measured),
                # by the average that rules see: the sign of one noisy batch means little
                "share": sum(_in_conflict(x) for x in measured) / len(measured),
                "cosine_first": cosines[0] if cosines else None,
                "cosine_mean": sum(cosines) / len(cosines) if cosines else None,
            }
        return summary


def _in_conflict(scalars: Mapping[str, float]) -> bool:
    """Return whether the smoothed products of a step conflict.

    Version 0.1 wrote only the products of the step's batch, which are used instead.
    """
    return bool(scalars.get("surgery/conflict_smoothed", scalars["surgery/dot"] < 0))
