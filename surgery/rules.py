"""Rules: from weights and geometry to how much pass@k and pass@1 each prompt gets.

A rule is ``rule(weights[N], geometry, state, **settings) -> (alpha[N], beta[N])``; the advantages
that are applied
are alpha_i A^k_ij + beta_i A^1_ij. Its keyword-only arguments are its settings, read from the
configuration's
`surgery` section by name. `state` is a dict of numbers that it may keep; it is saved with
checkpoints.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from surgery.gram import Geometry
from surgery.userfile import load_function

State = dict[str, float]
Decision = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Rule:
    function: Callable[..., Decision]
    measures: bool  # whether it looks at the geometry

    def bind(
        self, settings: Mapping[str, Any]
    ) -> Callable[[Tensor, Geometry | None, State], Decision]:
        """The rule with its own settings out of `settings`."""
        parameters = inspect.signature(self.function).parameters.values()
        own = {
            p.name: settings[p.name]
            for p in parameters
            if p.kind is p.KEYWORD_ONLY and p.name in settings
        }
        return lambda weights, geometry, state: self.function(weights, geometry, state, **own)


RULES: dict[str, Rule] = {}


def find_rule(name: str) -> Rule:
    """A registered rule, or the user's own `file.py:function`, which is taken to measure."""
    return RULES[name] if name in RULES else Rule(load_function(name), measures=True)


def rule(measures: bool) -> Callable[[Callable[..., Decision]], Callable[..., Decision]]:
    def register(function: Callable[..., Decision]) -> Callable[..., Decision]:
        RULES[function.__name__] = Rule(function, measures)
        return function

    return register


def apply(decision: Decision, a_k: Tensor, a_1: Tensor) -> Tensor:
    """The advantages [N, n] of a decision."""
    alpha, beta = decision
    return alpha[:, None] * a_k + beta[:, None] * a_1


def with_pass_1(weights: Tensor, coefficient: float) -> Decision:
    """(1, coefficient) for every prompt."""
    ones = torch.ones_like(weights)
    return ones, coefficient * ones


@rule(measures=False)
def none(weights: Tensor, geometry: Geometry | None, state: State) -> Decision:
    """(1, 0): pass@k as published."""
    return with_pass_1(weights, 0.0)


@rule(measures=False)
def mix(weights: Tensor, geometry: Geometry | None, state: State, *, mix: float = 0.5) -> Decision:
    """(1, lambda): linear scalarisation J_k + lambda J_1, the bar for every other rule."""
    return with_pass_1(weights, mix)


@rule(measures=True)
def pcgrad(
    weights: Tensor, geometry: Geometry, state: State, *, margin: float = 0.0, cap: float = 10.0
) -> Decision:
    """(1, c) with c = clip(margin - <J_k, J_1>/|J_1|^2, 0, cap).

    The least pass@1 whose addition gives <update, J_1> >= margin |J_1|^2: the projection of arXiv
    2001.06782,
    one-sided, so that J_1 itself stays untouched. Where |J_1|^2 is 0, c is the cap on conflict and
    else 0.
    """
    products = geometry.products
    if geometry.degenerate:
        return with_pass_1(weights, cap if products.dot < 0 else 0.0)
    return with_pass_1(weights, min(max(margin - products.dot / products.norm_1, 0.0), cap))
