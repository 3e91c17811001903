"""Rules: from weights and geometry to the shares of pass@k and pass@1 of each prompt.

A rule is ``rule(weights[N], geometry, state, *, settings) -> (alpha[N], beta[N])``; the applied
advantages are alpha_i A^k_ij + beta_i A^1_ij. A rule that decides per prompt may return [N, n]: for
each completion, the other completions of its prompt decide. Keyword-only arguments are settings
with the names of keys in the `surgery` section of the configuration. `state` is a dict of numbers
that a rule may keep; checkpoints store it. Weights are the unbiased estimates of w_k, and c is the
coefficient of J_1 beside J_k.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from surgery.gap import gap_to_base
from surgery.geometry import Geometry, Products
from surgery.user_code import UserCodeError, fault, load_function, own_settings, without_value

State = dict[str, float]
Decision = tuple[Tensor, Tensor]

SLOWEST = 0.1  # least pace by which pcgrad divides
PRODUCTS, NORM_K, AGREEMENT = "products", "norm_k", "agreement"  # measurements that a rule may need


@dataclass(frozen=True)
class Rule:
    function: Callable[..., Decision]
    needs: frozenset[str]
    own: str = ""  # file.py:function of a user's rule, whose results get extra checks

    def bind(
        self, settings: Mapping[str, Any], samples: int | None = None
    ) -> Callable[[Tensor, Geometry, State], Decision]:
        """Return the rule with its settings from `settings`, for `samples` samples per prompt.

        If a measurement is not finite, the weights are NaN: the gradient is then not finite either,
        and the trainer skips the step.
        """
        chosen = own_settings(self.function, settings)
        remedy = ", or ".join(["correct the function", *_given(chosen, settings)])
        missing = without_value(self.function, settings) if self.own else []
        if missing:
            why = f"names a setting {missing[0]} that the section surgery does not have"
            raise self._refusal(f"{why}; give surgery.options.{missing[0]}=..., or a default")

        def bound(weights: Tensor, geometry: Geometry, state: State) -> Decision:
            if self.needs and not geometry.finite:
                return (torch.full_like(weights, math.nan),) * 2
            try:
                decision = self.function(weights, geometry, state, **chosen)
            except Exception as error:
                if not self.own:
                    raise
                why = fault(error, self.own, self.function)
                raise self._refusal(f"{why}; {remedy}") from None
            wrong = _shape_error(decision, len(weights), samples)
            if wrong is None and self.own:
                wrong = _not_finite(decision) or _not_storable(state)
            if wrong:
                raise self._refusal(wrong)
            return decision

        return bound

    def _refusal(self, why: str) -> UserCodeError:
        return UserCodeError(f"surgery.rule = {self.own or self.function.__name__}: {why}")


def _given(chosen: Mapping[str, Any], settings: Mapping[str, Any]) -> list[str]:
    """Return the settings of the rule that the user gave under names of their own."""
    own = settings.get("options", {})
    return [f"surgery.options.{x} = {own[x]!r:.40}" for x in chosen if x in own]


def _shape_error(decision: Any, prompts: int, samples: int | None) -> str | None:
    """Return how a decision differs from two tensors [prompts] or [prompts, samples], or None."""
    if isinstance(decision, tuple | list) and len(decision) == 2:
        shapes = [list(x.shape) if isinstance(x, Tensor) else [] for x in decision]
        ends = [[], [samples]] if samples else [[], *(x[1:2] for x in shapes)]
        if all(x[:1] == [prompts] and x[1:] in ends for x in shapes):
            return None
    size = f"[{prompts}] or [{prompts}, {samples or 'n'}]"
    return f"returned {_shown(decision)}; return two tensors, each of shape {size}"


def _not_finite(decision: Decision) -> str | None:
    if all(bool(x.isfinite().all()) for x in decision):
        return None
    return "returned NaN or infinite numbers, though all its inputs are finite; correct it"


def _shown(x: Any) -> str:
    if isinstance(x, tuple | list):
        return f"({', '.join(map(_shown, x[:3]))}{', ...' if len(x) > 3 else ''})"
    return f"a tensor of shape {list(x.shape)}" if isinstance(x, Tensor) else f"{x!r:.40}"


def _not_storable(state: State) -> str | None:
    try:
        json.dumps(state)
    except TypeError as error:
        return f"keeps a value in `state` that checkpoints cannot store ({error}); keep numbers"
    return None


RULES: dict[str, Rule] = {}


def rule(*needs: str) -> Callable[[Callable[..., Decision]], Callable[..., Decision]]:
    """Register a rule under its function's name, with the measurements that it needs."""

    def register(function: Callable[..., Decision]) -> Callable[..., Decision]:
        RULES[function.__name__] = Rule(function, frozenset(needs))
        return function

    return register


def find_rule(name: str) -> Rule:
    """Return a registered rule, or the user's `file.py:function`, which gets all measurements."""
    if name in RULES:
        return RULES[name]
    return Rule(load_function(name), frozenset((PRODUCTS, NORM_K, AGREEMENT)), name)


def apply(decision: Decision, a_k: Tensor, a_1: Tensor) -> Tensor:
    """Return the advantages [N, n] of a decision."""
    alpha, beta = (x if x.ndim == 2 else x[:, None] for x in decision)
    return alpha * a_k + beta * a_1


def per_prompt(decision: Decision) -> Decision:
    """Return (alpha[N], beta[N]), means over completions if the decision is per completion."""
    alpha, beta = (x.mean(1) if x.ndim == 2 else x for x in decision)
    return alpha, beta


def with_pass_1(weights: Tensor, c: float) -> Decision:
    """Return (1, c) for every prompt: J_k + c J_1."""
    ones = torch.ones_like(weights)
    return ones, c * ones


# --- rules without measurements


@rule()
def none(weights: Tensor, geometry: Geometry, state: State) -> Decision:
    """(1, 0): pass@k as published."""
    return with_pass_1(weights, 0.0)


@rule()
def mix(weights: Tensor, geometry: Geometry, state: State, *, mix: float = 0.5) -> Decision:
    """(1, lambda): linear scalarisation J_k + lambda J_1, the comparison for other rules."""
    return with_pass_1(weights, mix)


@rule()
def floor(
    weights: Tensor,
    geometry: Geometry,
    state: State,
    *,
    tolerance: float = 0.0,
    start: float = 2.0,
    integral_gain: float = 1.0,
    gain: float = 20.0,
    cap: float = 10.0,
    rate_ema: float = 0.8,
) -> Decision:
    """(1, lambda) with lambda = clip(I + gain gap, 0, cap), a PI controller of the constraint.

    gap is `gap_to_base`; I begins at `start`, accumulates integral_gain gap and stays in [0, cap].
    From I = 0 the controller would react only after the loss that it should prevent. The rule needs
    no measurement and has no degenerate case. start = 0 without a gap is `none`; zero gains give
    `mix`.
    """
    gap = gap_to_base(geometry, state, tolerance, rate_ema)
    integral = state.get("floor_integral", start) + integral_gain * gap
    state["floor_integral"] = min(max(integral, 0.0), cap)
    return with_pass_1(weights, min(max(state["floor_integral"] + gain * gap, 0.0), cap))


# --- one coefficient c from the 2x2 Gram of (J_k, J_1)


def measured(geometry: Geometry) -> Products:
    """Return the products of the geometry, which must be there."""
    assert geometry.products is not None, "this rule needs the products of J_k and J_1"
    return geometry.products


def as_rule(coefficient: Callable[..., float]) -> Callable[..., Decision]:
    """Return the rule (1, c) with c = coefficient(products, cap=..., ...), within [0, cap].

    If |J_1|^2 is measured as 0, ratios to it are undefined: c is the cap on conflict, else 0.
    """

    @wraps(coefficient)
    def rule(
        weights: Tensor, geometry: Geometry, state: State, *, cap: float = 10.0, **settings: float
    ) -> Decision:
        x = measured(geometry)
        if geometry.degenerate:
            return with_pass_1(weights, cap if x.dot < 0 else 0.0)
        return with_pass_1(weights, min(max(coefficient(x, cap=cap, **settings), 0.0), cap))

    return rule


def ratio(on_k: float, on_1: float, cap: float) -> float:
    """Return on_1 / on_k, or the cap if J_k has no weight."""
    return on_1 / on_k if on_k > 0 else cap


@rule(PRODUCTS, NORM_K)
def pcgrad(
    weights: Tensor,
    geometry: Geometry,
    state: State,
    *,
    margin: float = 0.0,
    tolerance: float = 0.0,
    early: float = 0.02,
    restore: float = 40.0,
    relax: float = 8.0,
    lead: float = 8.0,
    cap: float = 10.0,
    rate_ema: float = 0.8,
) -> Decision:
    """(1, c), c the least that gives <update, J_1> >= margin |J_1|^2 + force |J_k| |J_1|.

    c = margin - <J_k, J_1>/|J_1|^2 + force |J_k|/|J_1|, in [0, cap]: the projection of arXiv
    2001.06782, one-sided, so that J_1 itself does not change. The force is that of a control
    barrier (arXiv 1609.06408): the allowed descent is proportional to the distance above the floor.
    The projection alone has no memory: it never restores the pass@1 that noise and curvature take.

    force = restore gap below the floor and (relax / pace) gap above it. The gap is `gap_to_base`,
    `lead` steps on, because averages lag and the optimiser's momentum continues. The floor begins
    `early` higher than the tolerance says and sinks with the pace: while the learning rate is high,
    so is the noise. A force times |J_1|^2 would vanish where pass@1 is at its best, and never let
    it leave. restore = 0 is the plain projection. The cap limits the cost of the early floor: at
    c = 4 pass@k falls far below the base before it rises.

    The products are those before this batch: c must not depend on the noise of the gradient that it
    multiplies. |J_1|^2 = 0: c = cap (1 + force) on conflict, the limit of opposite gradients, else
    margin + force.
    """
    gap = gap_to_base(geometry, state, tolerance - early * geometry.pace, rate_ema, lead)
    force = gap * restore if gap > 0 or restore == 0 else gap * relax / max(geometry.pace, SLOWEST)
    x = geometry.before or measured(geometry)
    if x.norm_1 > 0:
        push, length = -x.dot / x.norm_1, math.sqrt(max(x.norm_k, 0.0) / x.norm_1)
    else:
        push, length = (cap, cap) if x.dot < 0 else (0.0, 1.0)
    return with_pass_1(weights, min(max(margin + push + force * length, 0.0), cap))


@rule(PRODUCTS, NORM_K)
@as_rule
def gradvac(x: Products, *, cosine: float = 0.0, cap: float = 10.0) -> float:
    """(1, c), c lifts the cosine g of (J_k, J_1) to at least phi (arXiv 2010.05874, eq. 2).

    Below phi, c = |J_k| (phi sqrt(1-g^2) - g sqrt(1-phi^2)) / (|J_1| sqrt(1-phi^2)).
    phi = 0 is `pcgrad` without margin.
    """
    now = x.cosine
    if now >= cosine:
        return 0.0
    lift = cosine * math.sqrt(1 - now**2) - now * math.sqrt(1 - cosine**2)
    return math.sqrt(x.norm_k / x.norm_1) * lift / math.sqrt(1 - cosine**2)


@rule(PRODUCTS, NORM_K)
@as_rule
def mgda(x: Products, *, cap: float = 10.0) -> float:
    """(1, c) along the shortest vector between J_k and J_1 (arXiv 1810.04650, eq. 4).

    The weight of J_k is t = clip((|J_1|^2 - <J_k, J_1>)/|J_k - J_1|^2, 0, 1); c = (1-t)/t, the cap
    if t = 0. J_k = J_1: c = 1. The rule favours the shorter gradient.
    """
    apart = x.norm_k + x.norm_1 - 2 * x.dot
    t = min(max((x.norm_1 - x.dot) / apart, 0.0), 1.0) if apart > 0 else 0.5
    return ratio(t, 1 - t, cap)


@rule(PRODUCTS, NORM_K)
@as_rule
def cagrad(x: Products, *, radius: float = 0.5, cap: float = 10.0) -> float:
    """(1, c) near the mean gradient g_0, best for the worse objective (arXiv 2110.14048).

    The weight w of J_k minimises <g_w, g_0> + sqrt(phi) |g_w|, g_w = w J_k + (1-w) J_1,
    phi = radius^2 |g_0|^2. The update is g_0 + sqrt(phi)/|g_w| g_w. g_w = 0 leaves g_0, so c = 1.
    """
    root = radius * math.sqrt(max(x.norm_k + 2 * x.dot + x.norm_1, 0.0)) / 2

    def length(w: float) -> float:
        square = w * w * x.norm_k + 2 * w * (1 - w) * x.dot + (1 - w) ** 2 * x.norm_1
        return math.sqrt(max(square, 0.0))

    def objective(w: float) -> float:
        with_mean = (w * (x.norm_k + x.dot) + (1 - w) * (x.dot + x.norm_1)) / 2
        return with_mean + root * length(w)

    low, high = 0.0, 1.0
    for _ in range(100):  # convex in w: ternary search
        third = (high - low) / 3
        if objective(low + third) < objective(high - third):
            high -= third
        else:
            low += third
    w = (low + high) / 2
    pull = root / length(w) if length(w) > 0 else 0.0
    return ratio(0.5 + pull * w, 0.5 + pull * (1 - w), cap)


@rule(PRODUCTS, NORM_K)
@as_rule
def nash(x: Products, *, cap: float = 10.0) -> float:
    """(1, |J_k|/|J_1|): Nash bargaining of two, G alpha = 1/alpha (arXiv 2202.01017)."""
    return math.sqrt(x.norm_k / x.norm_1)


def from_weighting(weighting: Callable[[Tensor], Tensor]) -> Callable[..., Decision]:
    """Return a rule from a map of the 2x2 Gram of (J_k, J_1) to two weights, as in TorchJD.

    Example for your own file: ``my_rule = from_weighting(UPGradWeighting())``.
    """

    def coefficient(x: Products, *, cap: float = 10.0) -> float:
        gram = torch.tensor([[x.norm_k, x.dot], [x.dot, x.norm_1]], dtype=torch.float64)
        on_k, on_1 = weighting(gram).tolist()
        return ratio(on_k, on_1, cap)

    return as_rule(coefficient)


# --- a choice for each prompt, from its agreement a_i = <g_i, J_1>


def weights_and_agreements(weights: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor]:
    """Return (w, a) [N, n] from the other completions, or [N] from all of them.

    The first form is that of `geometry.others` (see `by_others`), the second its substitute.
    """
    if geometry.others is not None:
        return geometry.others.weights, geometry.others.agreement
    assert geometry.agreement is not None, "this rule needs agreements, measured in every step"
    return weights, geometry.agreement


def clipped(weights: Tensor, clip: Tensor, tau: float) -> Decision:
    """Return (0, tau) where `clip` is true, else (1, 0)."""
    ones, zeros = torch.ones_like(weights), torch.zeros_like(weights)
    return torch.where(clip, zeros, ones), torch.where(clip, tau * ones, zeros)


@rule(AGREEMENT)
def agreement_clip(
    weights: Tensor, geometry: Geometry, state: State, *, tau: float = 1.0
) -> Decision:
    """Weight tau where pass@k over-weights a disagreeing prompt or under-weights an agreeing one.

    (0, tau) where [a_i < 0 and w_i > tau] or [a_i >= 0 and w_i < tau], else (1, 0). Then
    w~_i a_i >= tau a_i for every prompt, so <update, J_1> >= tau mean a_i = tau |J_1|^2 for the
    agreements used and exact weights. The update applies A^k, which has that weight in expectation.
    """
    w, a = weights_and_agreements(weights, geometry)
    return clipped(w, torch.where(a < 0, w > tau, w < tau), tau)


@rule(AGREEMENT)
def agreement_clip_one_sided(
    weights: Tensor, geometry: Geometry, state: State, *, tau: float = 1.0
) -> Decision:
    """(0, tau) where a_i < 0 and w_i > tau, else (1, 0): clips only disagreeing prompts.

    For comparison: agreeing easy prompts keep a weight near 0, and Adam rescales the rest.
    """
    w, a = weights_and_agreements(weights, geometry)
    return clipped(w, (a < 0) & (w > tau), tau)


@rule(AGREEMENT, PRODUCTS)
def agreement_soft(
    weights: Tensor,
    geometry: Geometry,
    state: State,
    *,
    tau: float = 1.0,
    softness: float = 1.0,
) -> Decision:
    """(s_i, tau (1-s_i)) with s_i = sigmoid(sign(w_i - tau) a_i / (T |J_1|^2)), T = `softness`.

    T to 0 gives `agreement_clip`. <update, J_1> >= |J_1|^2 (tau - 0.2785 T mean |w_i - tau|), for
    the agreements used. |J_1|^2 = 0 counts as the limit T to 0.
    """
    (w, a), scale = weights_and_agreements(weights, geometry), softness * measured(geometry).norm_1
    signed = torch.sign(w - tau) * a
    s = torch.sigmoid(signed / scale) if scale > 0 else (signed >= 0).to(w)
    return s, tau * (1 - s)
