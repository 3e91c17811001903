"""The study of the paper's toy: printed figures, numbers of the theory, every rule's path."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from eval.report.curve import height
from eval.report.tables import number, table
from surgery import theory
from surgery.rules import RULES
from surgery.toy import (
    ETA,
    REFERENCE,
    Bandit,
    ascend,
    frontier,
    geometry,
    gradients,
    objective,
    population,
    printed_figures,
    success,
    two_prompts,
)

PASS_1 = "pass@1"  # beside the rules: the ascent of J_1 alone
KS = range(1, 33)

Points = tuple[list[float], list[float]]
Progress = Callable[[Sequence[str]], Iterable[str]]


@dataclass(frozen=True)
class Setting:
    """Settings of the population; only `prompts` is the paper's, which does not print the others.

    The start gives answer 1 with probability 0.12 to every prompt, so that the success rate is 88 %
    on easy prompts and 12 % on hard ones.
    """

    delta: float = 1.0  # distance of the means of s, easy to hard
    hard_share: float = 0.3
    prompts: int = 6000
    k: int = 5
    start: tuple[float, float] = (-2.0, 0.0)
    steps: int = 300
    eta: float = 1.0

    @property
    def theta(self) -> Tensor:
        return torch.tensor(self.start, dtype=torch.float64)

    def bandit(self) -> Bandit:
        return population(self.delta, self.hard_share, self.prompts)


@dataclass(frozen=True)
class Study:
    setting: Setting
    toy: Bandit
    paths: dict[str, Tensor]  # theta [steps + 1, 2] of pass@1 and of each rule
    planes: dict[str, Points]  # J_1 and J_k along each path
    frontier: Tensor  # theta [points, 2], from J_k to J_1

    def plane(self, theta: Tensor) -> Points:
        return plane(theta, self.toy, self.setting.k)


def plane(theta: Tensor, toy: Bandit, k: int) -> Points:
    """Return J_1 and J_k of each theta [points, 2]."""
    return objective(theta, toy, 1).tolist(), objective(theta, toy, k).tolist()


def study(setting: Setting, progress: Progress = iter) -> Study:
    """Return the study of a setting; `progress` wraps the sequence of rules, as tqdm does."""
    toy, paths, planes = setting.bandit(), {}, {}
    for name in progress([PASS_1, *RULES]):
        k, rule = (1, "none") if name == PASS_1 else (setting.k, name)
        paths[name] = ascend(toy, k, rule, setting.theta, setting.steps, setting.eta)
        planes[name] = plane(paths[name], toy, setting.k)
    return Study(setting, toy, paths, planes, frontier(toy, setting.k))


def named(name: str, k: int) -> str:
    """Return the name of a path; the rule `none` is pass@k alone."""
    return f"none (pass@{k})" if name == "none" else name


def ends(study: Study) -> list[dict[str, Any]]:
    """Return each rule's end, its lowest J_1 on the way, and its distance below the frontier."""
    best = torch.tensor(study.plane(study.frontier), dtype=torch.float64).T
    rows = []
    for name, path in study.paths.items():
        pass_1, pass_k = study.planes[name]
        rows.append(
            {
                "rule": name,
                "theta": path[-1].tolist(),
                "pass@1": pass_1[-1],
                f"pass@{study.setting.k}": pass_k[-1],
                "lowest_pass@1": min(pass_1),
                "below_frontier": float(height(best, torch.tensor(pass_1[-1], dtype=best.dtype)))
                - pass_k[-1],
                "last_step": float((path[-1] - path[-2]).norm()),
            }
        )
    return rows


def against_theory(toy: Bandit, theta: Tensor, k: int) -> dict[str, Any]:
    """Return the numbers of the paper's statements at theta, and the measured ones."""
    share = torch.full((len(toy.hard),), 1 / len(toy.hard), dtype=torch.float64)
    weights, _, exact = geometry(theta, toy, k)
    assert exact.products is not None and exact.agreement is not None
    a, p = exact.agreement, success(theta, toy)
    terms = theory.decomposition(weights, a, share)
    delta = theory.margin(weights, a, share).delta
    bounds = delta, k, toy.score_bound, toy.curvature_bound
    easy, hard = p[a >= 0].min(), p[a < 0].max() if (a < 0).any() else p.new_tensor(0.0)
    separated = bool(easy > hard)
    cosines = [_cosine(theta, toy, m) for m in KS]
    return {
        "k": k,
        "E[w]": float(terms.weight),
        "|grad J_1|^2": float(terms.agreement),
        "cov(w, a)": float(terms.covariance),
        "<grad J_k, grad J_1>": float(terms.inner),
        "mean agreement under D_k": float(theory.mean(a, theory.shifted(weights, share))),
        "negative agreement, easy": float((a[~toy.hard] < 0).double().mean()),
        "negative agreement, hard": float((a[toy.hard] < 0).double().mean()),
        "delta (4.4)": float(delta),
        "k* (4.5)": float(theory.critical_k(a, share, easy, hard)) if separated else None,
        "first k in conflict": next((m for m in KS if cosines[m - 1] < 0), None),
        "step limit (4.6)": float(theory.step_limit(*bounds)) if delta > 0 else None,
        "step limit, sharp": float(theory.step_limit(*bounds, sharp=True)) if delta > 0 else None,
        "cosine of J_k and J_1 by k": cosines,
    }


def _cosine(theta: Tensor, toy: Bandit, k: int) -> float:
    products = geometry(theta, toy, k)[2].products
    assert products is not None
    return products.cosine


def agreements(study: Study, theta: Tensor) -> Tensor:
    """Return a_i [N] of the population at theta."""
    g = gradients(success(theta, study.toy), study.toy)
    return g @ g.mean(0)


def results(study: Study) -> dict[str, Any]:
    """Return the contents of toy.json: every figure and parameter."""
    pair = torch.tensor(REFERENCE, dtype=torch.float64)
    setting = study.setting
    return {
        "parameters": parameters(setting),
        "printed": [
            {"name": x.name, "printed": x.printed, "ours": x.value, "matches": x.matches}
            for x in printed_figures()
        ],
        "two prompts": against_theory(two_prompts(), pair, 10),
        "population": against_theory(study.toy, setting.theta, setting.k),
        "rules": ends(study),
        "frontier": list(zip(*study.plane(study.frontier), strict=True)),
    }


def parameters(setting: Setting) -> dict[str, Any]:
    pair = two_prompts()
    return {
        "two prompts": {
            "s": pair.features[:, 1].tolist(),
            "theta_ref": list(REFERENCE),
            "k": 10,
            "eta": ETA,
        },
        "population": vars(setting) | {"start": list(setting.start)},
    }


def report(content: dict[str, Any]) -> str:
    """Return the tables for the terminal: printed figures, the theory's numbers, the rules."""
    printed = [
        [x["name"], x["printed"], f"{x['ours']:.3g}", "yes" if x["matches"] else "NO"]
        for x in content["printed"]
    ]
    pair, all_prompts = content["two prompts"], content["population"]
    names = [name for name in pair if name != "cosine of J_k and J_1 by k"]
    numbers = [[name, *(number(x[name], ".3g") for x in (pair, all_prompts))] for name in names]
    pass_k = f"pass@{all_prompts['k']}"
    keys = ["pass@1", pass_k, "lowest_pass@1", "below_frontier"]
    k = all_prompts["k"]
    rules = [[named(x["rule"], k), *(_places(x[key]) for key in keys)] for x in content["rules"]]
    steps = content["parameters"]["population"]["steps"]
    parts = [
        table(["two prompts", "paper", "ours", "match"], printed),
        table(["theory", "two prompts", "population"], numbers),
        table([f"after {steps} steps", "pass@1", pass_k, "lowest pass@1", "below frontier"], rules),
    ]
    return "\n\n".join(parts)


def _places(x: float) -> str:
    return f"{round(x, 3) + 0.0:.3f}"  # no -0.000
