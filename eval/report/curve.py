"""The curve of fixed mixtures over lambda, and the distance of other rules above it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from eval.report.labels import NOT_COMPARED, Config, differing, distinctions
from eval.report.runs import Run
from eval.scores.intervals import (
    LEVEL,
    RESAMPLES,
    Interval,
    jackknife,
    normal_quantile,
    spread,
    t_quantile,
    unknown,
)
from eval.scores.passk import problem_scores

Point = tuple[float, float]  # (pass@1, pass@k)


# the keys that two comparable runs share beside the completions of a step: the work, not its tuning
PROTOCOL = (
    *("model.", "task.", "eval.k", "eval.problems", "eval.samples"),
    *("eval.temperature", "eval.top_p", "eval.seed"),
    *("train.steps", "train.temperature"),
)


@dataclass(frozen=True)
class Curve:
    """Ends of runs [lambda, seed, metric, problem] of one setting.

    The lambdas ascend; lambda = 0 is pass@k alone.
    """

    config: Config  # of one of its runs
    protocol: str
    setting: str
    lambdas: list[float]
    seeds: list[int]
    ends: Tensor

    @property
    def points(self) -> list[Point]:
        """The mean end of each lambda, over seeds and problems."""
        return [(x, y) for x, y in self.ends.mean((1, 3)).tolist()]


def end(run: Run, exact: bool) -> Tensor:
    """Return pass@1 and pass@k of each problem [metric, problem]; exact values have one column."""
    if exact:
        values = [[run.value("after", metric, exact)] for metric in ("pass@1", run.k)]
        return torch.tensor(values, dtype=torch.float64)
    records = run.records("after")
    return torch.stack([problem_scores(records, k) for k in (1, run.summary["k"])])


def curves(groups: Sequence[Sequence[Run]], exact: bool) -> list[Curve]:
    """Return one curve per setting that has two lambdas or more with common seeds."""
    settings: dict[str, dict[float, Sequence[Run]]] = {}
    for runs in groups:
        mix = mixture(runs[0])
        if mix is not None:
            settings.setdefault(_setting(runs[0]), {})[mix] = runs
    mixtures = []
    for setting, by_lambda in settings.items():
        seeds = set.intersection(
            *({x.summary["seed"] for x in runs} for runs in by_lambda.values())
        )
        if len(by_lambda) < 2 or not seeds:
            continue
        lambdas = sorted(by_lambda)
        ends = [
            torch.stack([end(x, exact) for x in by_lambda[mix] if x.summary["seed"] in seeds])
            for mix in lambdas
        ]
        run, common = by_lambda[lambdas[0]][0], sorted(seeds)
        mixtures.append(
            Curve(run.config, _protocol(run), setting, lambdas, common, torch.stack(ends))
        )
    return mixtures


def curve_labels(mixtures: Sequence[Curve]) -> list[str]:
    """Return a label for each curve; those of several say in which settings they differ."""
    configs = [curve.config for curve in mixtures]
    keys = [key for key in differing(configs) if not key.startswith("surgery.")]
    return [", ".join(["fixed mixtures", *x]) for x in distinctions(configs, keys)]


def mixture(run: Run) -> float | None:
    """Return the lambda of a fixed mixture; None for any other rule."""
    if run.config.get("objective.k_schedule"):
        return None
    rule = run.config["surgery.rule"]
    return {"mix": run.config["surgery.mix"], "none": 0.0}.get(rule)


def on_curve(run: Run, mixtures: Sequence[Curve]) -> bool:
    return mixture(run) is not None and any(x.setting == _setting(run) for x in mixtures)


def above(runs: Sequence[Run], mixtures: Sequence[Curve], exact: bool) -> Interval | None:
    """Return pass@k minus the curve's pass@k at the same pass@1, over the common seeds.

    Return None if no curve has the same protocol, or if the runs are on the curve.
    """
    rivals = [curve for curve in mixtures if curve.protocol == _protocol(runs[0])]
    if on_curve(runs[0], rivals):
        return None
    by_seed = {run.summary["seed"]: run for run in runs}
    seeds = sorted(set(by_seed).intersection(*(curve.seeds for curve in rivals)))
    if not rivals or not seeds:
        return None
    ends = torch.stack([end(by_seed[seed], exact) for seed in seeds])
    mixed = [curve.ends[:, [curve.seeds.index(seed) for seed in seeds]] for curve in rivals]
    return distance(ends, mixed, exact)


def distance(ends: Tensor, curves: Sequence[Tensor], exact: bool) -> Interval:
    """Return how far the mean of ends [seed, metric, problem] is above curves [lambda, seed, ...].

    With several curves (such as one for each learning rate) the highest one counts. Exact values
    vary only over seeds, so their interval is a jackknife over seeds.
    """

    def gaps(places: Sequence[int]) -> list[float]:
        means = (torch.cat([x, ends[None]])[:, list(places)].mean((1, 3)) for x in curves)
        return [float(gap(x)) for x in means]

    if exact:
        return jackknife(lambda places: min(gaps(places)), len(ends)).interval
    distances = gaps(range(len(ends)))
    highest = curves[distances.index(min(distances))]
    return sampled(torch.cat([highest, ends[None]]))


def sampled(runs: Tensor) -> Interval:
    """Return the `gap` of runs [run, seed, metric, problem] that share their problems.

    The interval's ends are quantiles of simulated gaps. The simulation draws all mean ends with
    their covariance over seeds and problems, scaled by the ratio of Student's t to the normal
    quantile. The error of the linearised gap (delta method) gives only the degrees of freedom: near
    a bend of the curve it depends on the side on which the run happened to end.
    """
    mean = runs.mean((1, 3))
    apart = runs - mean[:, None, :, None]
    slopes = torch.autograd.functional.jacobian(gap, mean)
    variances = spread(torch.einsum("rm,rsmp->sp", slopes, apart))
    if variances.seeds + variances.added == 0:
        return unknown(float(gap(mean))).interval
    generator = torch.Generator().manual_seed(0)

    def drawn(deviations: Tensor) -> Tensor:
        """Draw normal values with the covariance of a mean over the last dimension."""
        size = deviations.shape[-1]
        root = torch.linalg.qr(deviations.flatten(0, 1).T, mode="r").R
        normal = torch.randn(RESAMPLES, len(root), generator=generator, dtype=mean.dtype)
        return (normal @ root).unflatten(1, mean.shape) / math.sqrt(size * max(size - 1, 1))

    share = math.sqrt(variances.added / variances.problems) if variances.problems else 0.0
    noise = share * drawn(apart.mean(1)) + drawn(apart.mean(3).transpose(1, 2))
    level = (1 + LEVEL) / 2
    longer = t_quantile(level, variances.freedom) / normal_quantile(level)
    ends = torch.tensor([1 - level, level], dtype=mean.dtype)
    low, high = gap(mean + longer * noise).quantile(ends).tolist()
    return {"value": float(gap(mean)), "low": low, "high": high}


def gap(means: Tensor) -> Tensor:
    """Return pass@k of the last of [..., run, metric] minus the height of the others' curve."""
    last = means[..., -1, :]
    return last[..., 1] - height(means[..., :-1, :], last[..., 0])


def height(points: Tensor, pass_1: Tensor) -> Tensor:
    """Return pass@k at a pass@1 on the broken line through points [..., point, metric].

    If the line has several values there, the highest one counts. Beyond its ends the line is level.
    """
    x, y = points.unbind(-1)
    at = pass_1[..., None]
    x_0, x_1, y_0, y_1 = x[..., :-1], x[..., 1:], y[..., :-1], y[..., 1:]
    inside = (torch.minimum(x_0, x_1) <= at) & (at <= torch.maximum(x_0, x_1))
    part = (at - x_0) / torch.where(x_0 == x_1, 1.0, x_1 - x_0)
    away = (x - at).abs()
    nearest = away == away.amin(-1, keepdim=True)
    outside = ~inside.any(-1, keepdim=True)
    heights = torch.cat([y_0 + part * (y_1 - y_0), y], -1)
    counts = torch.cat([inside, nearest & outside], -1)
    return heights.masked_fill(~counts, -math.inf).amax(-1)


def _protocol(run: Run) -> str:
    """Return the settings common to all runs of the same work, as one text."""
    completions = run.config["train.prompts"] * run.config["train.samples"]
    return f"{completions} {_text(run, [k for k in run.config if k.startswith(PROTOCOL)])}"


def _setting(run: Run) -> str:
    """Return all settings except the rule and the seed, as one text."""
    return _text(run, [k for k in run.config if not k.startswith(("surgery.", *NOT_COMPARED))])


def _text(run: Run, keys: Sequence[str]) -> str:
    """Return the values of keys, and the evaluation's problems, as data may have changed."""
    problems = [x["id"] for x in run.records("after")]
    return repr(([(k, run.config[k]) for k in sorted(keys)], problems))
