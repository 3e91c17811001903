"""The curve that fixed mixtures trace over lambda, and how far above it another rule ends."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from eval.report.runs import NOT_COMPARED, Run
from eval.scores.intervals import Estimate, jackknife

Point = tuple[float, float]  # (pass@1, pass@k)


# what two runs must share for one to be held against the other: the work, not how it was tuned
PROTOCOL = (
    *("model.", "task.", "objective.k", "eval.k", "eval.problems", "eval.samples"),
    *("eval.temperature", "eval.top_p", "eval.seed"),
    *("train.steps", "train.prompts", "train.samples", "train.temperature"),
)


@dataclass(frozen=True)
class Curve:
    """Ends of runs [lambda][seed] of one setting, lambdas ascending; lambda = 0 is pass@k alone."""

    protocol: str
    setting: str
    lambdas: list[float]
    seeds: list[int]
    ends: list[list[Point]]

    def points(self, places: Sequence[int]) -> list[Point]:
        """The mean ends over some of the seeds."""
        return [_mean([ends[i] for i in places]) for ends in self.ends]


def end(run: Run, exact: bool) -> Point:
    return run.value("after", "pass@1", exact), run.value("after", run.k, exact)


def curves(groups: Sequence[Sequence[Run]], exact: bool) -> list[Curve]:
    """One for each setting under which two lambdas or more were run on shared seeds."""
    settings: dict[str, dict[float, Sequence[Run]]] = {}
    for runs in groups:
        mix = mixture(runs[0])
        if mix is not None:
            settings.setdefault(_setting(runs[0]), {})[mix] = runs
    found = []
    for setting, by_lambda in settings.items():
        seeds = set.intersection(
            *({x.summary["seed"] for x in runs} for runs in by_lambda.values())
        )
        if len(by_lambda) < 2 or not seeds:
            continue
        lambdas = sorted(by_lambda)
        ends = [
            [end(x, exact) for x in by_lambda[mix] if x.summary["seed"] in seeds] for mix in lambdas
        ]
        protocol = _protocol(by_lambda[lambdas[0]][0])
        found.append(Curve(protocol, setting, lambdas, sorted(seeds), ends))
    return found


def mixture(run: Run) -> float | None:
    """The lambda of a fixed mixture; None of any other rule."""
    if run.config.get("objective.k_schedule"):
        return None
    rule = run.config["surgery.rule"]
    return {"mix": run.config["surgery.mix"], "none": 0.0}.get(rule)


def above(runs: Sequence[Run], found: Sequence[Curve], exact: bool) -> Estimate | None:
    """pass@k minus the curve's pass@k at the same pass@1, over the seeds that both have.

    Mean end against mean curve, with a jackknife over seeds. Of several curves under the same
    protocol (such as one for each learning rate) the highest counts. Beyond its ends the curve
    goes on level. None where there is no curve, or the runs are on it.
    """
    rivals = [curve for curve in found if curve.protocol == _protocol(runs[0])]
    if mixture(runs[0]) is not None and any(x.setting == _setting(runs[0]) for x in rivals):
        return None
    by_seed = {run.summary["seed"]: end(run, exact) for run in runs}
    seeds = sorted(set(by_seed).intersection(*(curve.seeds for curve in rivals)))
    if not rivals or not seeds:
        return None

    def distance(places: Sequence[int]) -> float:
        chosen = [seeds[i] for i in places]
        pass_1, pass_k = _mean([by_seed[seed] for seed in chosen])
        heights = [
            height(curve.points([curve.seeds.index(seed) for seed in chosen]), pass_1)
            for curve in rivals
        ]
        return pass_k - max(heights)

    return jackknife(distance, len(seeds))


def height(points: Sequence[Point], pass_1: float) -> float:
    """pass@k of the broken line through the points at a pass@1; the highest, where it passes twice,
    and level beyond its ends.
    """
    heights = []
    for (x_0, y_0), (x_1, y_1) in pairwise(points):
        if min(x_0, x_1) <= pass_1 <= max(x_0, x_1):
            part = (pass_1 - x_0) / (x_1 - x_0) if x_1 != x_0 else 0.0
            heights.append(y_0 + part * (y_1 - y_0))
    if heights:
        return max(heights)
    nearest = min(abs(x - pass_1) for x, _ in points)
    return max(y for x, y in points if abs(x - pass_1) == nearest)


def _protocol(run: Run) -> str:
    """What it shares with all runs that did the same work, as one text."""
    return repr(sorted((k, x) for k, x in run.config.items() if k.startswith(PROTOCOL)))


def _setting(run: Run) -> str:
    """All but the rule and the seed, as one text."""
    free = ("surgery.", *NOT_COMPARED)
    return repr(sorted((k, x) for k, x in run.config.items() if not k.startswith(free)))


def _mean(points: Sequence[Point]) -> Point:
    xs, ys = zip(*points, strict=True)
    return sum(xs) / len(xs), sum(ys) / len(ys)
