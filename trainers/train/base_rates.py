"""The base's success rate on each problem, with which rules compare later batches."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor, tensor

from eval.records import Record
from eval.tasks.task import Population, Problem, Task, name_of


@dataclass
class BaseRates:
    """Rates that the task knows, else those of a problem's stratum, else that of all problems.

    A stratum is a group and a level. Checkpoints hold the numbers.
    """

    overall: float
    strata: dict[str, float] = field(default_factory=dict)
    exact: dict[str, float] = field(default_factory=dict)  # by the name of a problem

    @classmethod
    def of_records(cls, records: Sequence[Record], overall: float) -> "BaseRates":
        """Return the rates of the base's records; `overall` is its best-known pass@1."""
        rates: dict[str, list[float]] = {}
        for x in records:
            rates.setdefault(_stratum(x.get("group"), x.get("level")), []).append(x["c"] / x["n"])
        return cls(overall, {name: sum(x) / len(x) for name, x in rates.items()})

    @classmethod
    def of_population(cls, population: Population, overall: float) -> "BaseRates":
        """Return the true rates."""
        exact = {name_of(*pair): float(population.p[i]) for pair, i in population.index.items()}
        return cls(overall, exact=exact)

    def __call__(self, task: Task, problems: Sequence[Problem]) -> Tensor:
        """Return the base's rate on each of the problems."""
        return tensor([self._of(task, x) for x in problems]).double()

    def _of(self, task: Task, problem: Problem) -> float:
        known = self.exact.get(name_of(problem.prompt, problem.gold)) if self.exact else None
        known = task.base_rate(problem) if known is None else known
        if known is not None:
            return known
        return self.strata.get(_stratum(problem.group, problem.level), self.overall)

    def state(self) -> dict[str, Any]:
        return asdict(self)


def _stratum(group: str | None, level: str | None) -> str:
    return f"{group or ''}|{level or ''}"
