"""Rules: from weights and geometry to how much pass@k and pass@1 each prompt gets.

A rule is ``rule(weights[N], geometry, state, *, settings) -> (alpha[N], beta[N])``; the advantages
that are applied are alpha_i A^k_ij + beta_i A^1_ij. A rule that tells prompts apart may return
[N, n], decided for each completion by the others of its prompt. Keyword-only arguments are its
settings, read from the `surgery` section of the configuration by name. `state` is a dict of
numbers that a rule may keep; checkpoints carry it. Weights are the unbiased estimates of w_k, c the
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

from surgery.geometry import Geometry, Products
from surgery.user_code import UserCodeError, fault, load_function, own_settings, without_value

State = dict[str, float]
Decision = tuple[Tensor, Tensor]

PRODUCTS, NORM_K, AGREEMENT = "products", "norm_k", "agreement"  # what a rule may need measured


@dataclass(frozen=True)
class Rule:
    function: Callable[..., Decision]
    needs: frozenset[str]
    own: str = ""  # the file.py:function of a rule of the user's own, which is trusted less

    def bind(
        self, settings: Mapping[str, Any], samples: int | None = None
    ) -> Callable[[Tensor, Geometry, State], Decision]:
        """The rule with its own settings out of `settings`, for that many samples of a prompt.

        By a measurement that is not finite no rule decides: the weights are NaN, which makes of the
        gradient what no step is taken with.
        """
        chosen = own_settings(self.function, settings)
        missing = without_value(self.function, settings) if self.own else []
        if missing:
            why = f"names a setting {missing[0]} that the section surgery has not"
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
                raise self._refusal(f"{why}; correct the function") from None
            wrong = _of_another_shape(decision, len(weights), samples)
            if wrong is None and self.own:
                wrong = _not_finite(decision) or _not_carried(state)
            if wrong:
                raise self._refusal(wrong)
            return decision

        return bound

    def _refusal(self, why: str) -> UserCodeError:
        return UserCodeError(f"surgery.rule = {self.own or self.function.__name__}: {why}")


def _of_another_shape(decision: Any, prompts: int, samples: int | None) -> str | None:
    """How a decision differs from two tensors [prompts] or [prompts, samples], if it does."""
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
    return "returned NaN or infinite numbers, though all that it was given is finite; correct it"


def _shown(x: Any) -> str:
    if isinstance(x, tuple | list):
        return f"({', '.join(map(_shown, x[:3]))}{', ...' if len(x) > 3 else ''})"
    return f"a tensor of shape {list(x.shape)}" if isinstance(x, Tensor) else f"{x!r:.40}"


def _not_carried(state: State) -> str | None:
    try:
        json.dumps(state)
    except TypeError as error:
        return f"keeps in `state` what no checkpoint can carry ({error}); keep numbers there"
    return None


RULES: dict[str, Rule] = {}


def rule(*needs: str) -> Callable[[Callable[..., Decision]], Callable[..., Decision]]:
    """Register a rule by its function's name, with what it needs measured."""

    def register(function: Callable[..., Decision]) -> Callable[..., Decision]:
        RULES[function.__name__] = Rule(function, frozenset(needs))
        return function

    return register


def find_rule(name: str) -> Rule:
    """A registered rule, or the user's own `file.py:function`, for which all is measured."""
    if name in RULES:
        return RULES[name]
    return Rule(load_function(name), frozenset((PRODUCTS, NORM_K, AGREEMENT)), name)


def apply(decision: Decision, a_k: Tensor, a_1: Tensor) -> Tensor:
    """The advantages [N, n] of a decision."""
    alpha, beta = (x if x.ndim == 2 else x[:, None] for x in decision)
    return alpha * a_k + beta * a_1


def per_prompt(decision: Decision) -> Decision:
    """(alpha[N], beta[N]), means over the completions where these were decided one by one."""
    alpha, beta = (x.mean(1) if x.ndim == 2 else x for x in decision)
    return alpha, beta


def with_pass_1(weights: Tensor, c: float) -> Decision:
    """(1, c) for every prompt: J_k + c J_1."""
    ones = torch.ones_like(weights)
    return ones, c * ones


# --- nothing measured


@rule()
def none(weights: Tensor, geometry: Geometry, state: State) -> Decision:
    """(1, 0): pass@k as published."""
    return with_pass_1(weights, 0.0)


@rule()
def mix(weights: Tensor, geometry: Geometry, state: State, *, mix: float = 0.5) -> Decision:
    """(1, lambda): linear scalarisation J_k + lambda J_1, the bar for every other rule."""
    return with_pass_1(weights, mix)


def gap_to_base(
    geometry: Geometry, state: State, tolerance: float, rate_ema: float, lead: float = 0.0
) -> float:
    """Pass@1 of the base - tolerance - the moving average of the batches' pass@1, `lead` steps on.

    The base's pass@1 is ``state["base_pass@1"]``, or else the first batch's; the average starts
    there, so that the first batch's noise is no gap. Its last change is taken to go on for `lead`
    steps.
    """
    now = float(geometry.rate.mean())
    base = state.setdefault("base_pass@1", now)
    before = state.get("average_pass@1", base)
    average = rate_ema * before + (1 - rate_ema) * now
    state["average_pass@1"] = average
    return base - tolerance - (average + lead * (average - before))


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
    From I = 0 the controller would wait for the very loss that it is there to prevent. Nothing is
    measured and nothing degenerates: start = 0 without a gap is `none`, without gains `mix`.
    """
    gap = gap_to_base(geometry, state, tolerance, rate_ema)
    integral = state.get("floor_integral", start) + integral_gain * gap
    state["floor_integral"] = min(max(integral, 0.0), cap)
    return with_pass_1(weights, min(max(state["floor_integral"] + gain * gap, 0.0), cap))


# --- one coefficient c from the 2x2 Gram of (J_k, J_1)


def measured(geometry: Geometry) -> Products:
    assert geometry.products is not None, "this rule needs the products of J_k and J_1"
    return geometry.products


def as_rule(coefficient: Callable[..., float]) -> Callable[..., Decision]:
    """The rule (1, c) with c = coefficient(products, cap=..., ...), within [0, cap].

    Where |J_1|^2 is measured as 0 a ratio to it means nothing: c is the cap on conflict, else 0.
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
    """on_1 / on_k; the cap where nothing is left on J_k."""
    return on_1 / on_k if on_k > 0 else cap


@rule(PRODUCTS)
def pcgrad(
    weights: Tensor,
    geometry: Geometry,
    state: State,
    *,
    margin: float = 0.0,
    tolerance: float = 0.0,
    gain: float = 20.0,
    lead: float = 2.0,
    cap: float = 10.0,
    rate_ema: float = 0.8,
) -> Decision:
    """(1, c), c the least that gives <update, J_1> >= (margin + gain gap) |J_1|^2, in [0, cap].

    c = margin + gain gap - <J_k, J_1>/|J_1|^2: the projection of arXiv 2001.06782, one-sided, so
    that J_1 itself stays untouched, with the restoring force of a control barrier (arXiv
    1609.06408): the descent that is allowed is proportional to what is left above the floor. The
    projection alone forgets: what noise and curvature take from pass@1 never comes back. gap is
    `gap_to_base`, read ahead because averages lag and the optimiser's momentum goes on; gain = 0 is
    the plain projection. |J_1|^2 = 0: the cap on conflict, else the force alone.
    """
    force = margin + gain * gap_to_base(geometry, state, tolerance, rate_ema, lead)
    x = measured(geometry)
    unknown = math.inf if x.dot < 0 else 0.0
    push = unknown if geometry.degenerate else -x.dot / x.norm_1
    return with_pass_1(weights, min(max(force + push, 0.0), cap))


@rule(PRODUCTS, NORM_K)
@as_rule
def gradvac(x: Products, *, cosine: float = 0.0, cap: float = 10.0) -> float:
    """The c that lifts the cosine g of (J_k, J_1) to at least phi (arXiv 2010.05874, eq. 2).

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
    """The shortest vector of the segment between J_k and J_1 (arXiv 1810.04650, eq. 4).

    On J_k: t = clip((|J_1|^2 - <J_k, J_1>)/|J_k - J_1|^2, 0, 1); c = (1-t)/t, the cap where t = 0.
    J_k = J_1: c = 1. It favours the shorter gradient.
    """
    apart = x.norm_k + x.norm_1 - 2 * x.dot
    t = min(max((x.norm_1 - x.dot) / apart, 0.0), 1.0) if apart > 0 else 0.5
    return ratio(t, 1 - t, cap)


@rule(PRODUCTS, NORM_K)
@as_rule
def cagrad(x: Products, *, radius: float = 0.5, cap: float = 10.0) -> float:
    """Near the mean gradient g_0, what helps the worse of the two most (arXiv 2110.14048).

    With w on J_k minimising <g_w, g_0> + sqrt(phi) |g_w|, g_w = w J_k + (1-w) J_1, phi = radius^2
    |g_0|^2: the update is g_0 + sqrt(phi)/|g_w| g_w. g_w = 0 leaves g_0, that is c = 1.
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
    """|J_k|/|J_1|: the Nash bargaining update, G alpha = 1/alpha, for two (arXiv 2202.01017)."""
    return math.sqrt(x.norm_k / x.norm_1)


def from_weighting(weighting: Callable[[Tensor], Tensor]) -> Callable[..., Decision]:
    """A rule out of any map from the 2x2 Gram of (J_k, J_1) to two weights, as TorchJD has them.

    In a file of yours: ``my_rule = from_weighting(UPGradWeighting())``.
    """

    def coefficient(x: Products, *, cap: float = 10.0) -> float:
        gram = torch.tensor([[x.norm_k, x.dot], [x.dot, x.norm_1]], dtype=torch.float64)
        on_k, on_1 = weighting(gram).tolist()
        return ratio(on_k, on_1, cap)

    return as_rule(coefficient)


# --- a choice for each prompt, from its agreement a_i = <g_i, J_1>


def told_apart(weights: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor]:
    """(w, a) of the prompts: [N, n] as the other completions say, or [N] by all where nothing else
    is known, for which see `by_others`.
    """
    if geometry.others is not None:
        return geometry.others.weights, geometry.others.agreement
    assert geometry.agreement is not None, "this rule needs agreements, measured in every step"
    return weights, geometry.agreement


def clipped(weights: Tensor, clip: Tensor, tau: float) -> Decision:
    """(0, tau) where `clip`, else (1, 0)."""
    ones, zeros = torch.ones_like(weights), torch.zeros_like(weights)
    return torch.where(clip, zeros, ones), torch.where(clip, tau * ones, zeros)


@rule(AGREEMENT)
def agreement_clip(
    weights: Tensor, geometry: Geometry, state: State, *, tau: float = 1.0
) -> Decision:
    """Weight tau where pass@k over-weights a disagreeing prompt or under-weights an agreeing one.

    (0, tau) where [a_i < 0 and w_i > tau] or [a_i >= 0 and w_i < tau], else (1, 0). Then
    w~_i a_i >= tau a_i for every prompt, so <update, J_1> >= tau mean a_i = tau |J_1|^2 for the
    agreements used and exact weights; what is applied is A^k, which has that weight in expectation.
    """
    w, a = told_apart(weights, geometry)
    return clipped(w, torch.where(a < 0, w > tau, w < tau), tau)


@rule(AGREEMENT)
def agreement_clip_one_sided(
    weights: Tensor, geometry: Geometry, state: State, *, tau: float = 1.0
) -> Decision:
    """(0, tau) where a_i < 0 and w_i > tau, else (1, 0): only what disagrees is held down.

    For comparison: agreeing easy prompts keep a weight near 0, and Adam rescales what is left.
    """
    w, a = told_apart(weights, geometry)
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
    the
    agreements used. |J_1|^2 = 0 is taken as the limit T to 0.
    """
    (w, a), scale = told_apart(weights, geometry), softness * measured(geometry).norm_1
    signed = torch.sign(w - tau) * a
    s = torch.sigmoid(signed / scale) if scale > 0 else (signed >= 0).to(w)
    return s, tau * (1 - s)
