"""Pictures of a diagnosis, with blue circles for easy prompts and red triangles for hard ones."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from eval.report import plots
from eval.report.plots import BLUE, COSINES, GREEN, LEVEL_MARKERS, RATES, VERMILLION, Look
from surgery.interference import (
    MIDDLE,
    PASS_1,
    WIDEST,
    FeatureSums,
    Measured,
    cross,
    members,
    shells,
)
from surgery.objectives import pass_at_k_weight

FEWEST = 20  # prompts with a gradient; the proxy is not drawn for fewer
SYMLOG = "symlog axis: linear near 0, logarithmic beyond"

COLOURS = {"easy": BLUE, "hard": VERMILLION}
KERNEL_PROMPTS = {"easy": 120, "hard": 80}  # as in figure 2 of arXiv 2602.21189


def pictures(
    figures: Mapping[str, Any], measures: Mapping[str, Measured]
) -> dict[str, tuple[str, Figure]]:
    """Return {file: (caption, figure)}; empty without prompts with a gradient to compare."""
    measure = list(measures)[-1]
    x, result = measures[measure], figures["measures"][measure]
    features = measures["last_layer"]
    assert isinstance(features, FeatureSums)
    mixed = (x.counts > 0) & (x.counts < x.n) & members(x, WIDEST)
    if "cosines" not in result or not mixed.any():
        return {}
    k = figures["k"]
    made = {
        "agreement": ("Agreement, weight and their product", agreement(x, measure, k)),
        "weights": ("Weight against agreement", weight_against_agreement(x, measure, k)),
        "thresholds": ("The product for all thresholds", thresholds(result["groups"], measure, k)),
        "kernel": ("Cosines between the prompts' gradients", kernel(features)),
        "cosines": (
            "Cosines between all k",
            cosine_map(result["cosines"], measure),
        ),
        "against_k": ("Where the sign changes", against_k(result, measure)),
    }
    compared = figures["proxy"][0]["count"] if figures["proxy"] else 0
    if compared >= FEWEST:
        made["proxy"] = ("The last layer as a proxy", proxy(features, measures["ghost"], figures))
    for caption, figure in made.values():
        plots.titled(figure, caption)
    return made


def _groups(x: Measured) -> tuple[Tensor, dict[str, Tensor]]:
    """Return rates of the widest filter's members, and masks of the easy and hard ones."""
    chosen = members(x, WIDEST)
    kind = shells(x.counts, x.n)[chosen]
    return x.counts[chosen] / x.n, {"easy": kind > MIDDLE, "hard": kind < MIDDLE}


def agreement(x: Measured, measure: str, k: int) -> Figure:
    """Draw three panels: a_i by group, w_k over the success rate, contributions w_i a_i / E[w].

    The mean of the contributions is the agreement under pass@k.
    """
    rate, groups = _groups(x)
    a = cross(x, PASS_1, PASS_1, WIDEST)
    w = pass_at_k_weight(rate, k)
    shifted = w * a / w.mean()
    figure = plots.figure(13, 4.2)
    left, middle, right = figure.subplots(1, 3)
    before, after = float(a.mean()), float(shifted.mean())
    _over_rate(left, a, groups, rate)
    left.axvline(before, color="0.1", linewidth=1.6, label=f"mean {before:+.2g}")
    left.set_xlabel(f"agreement $a_i$ with $\\nabla J_1$ ({_named(measure)})\n{SYMLOG}")
    for name, part in groups.items():
        middle.scatter(rate[part], w[part], s=26, alpha=0.7, **_marks(name), label=name)
    grid = torch.linspace(0, 1, 400, dtype=torch.float64)
    middle.plot(
        grid, pass_at_k_weight(grid, k), color="0.5", linewidth=0.9, label=f"$w_{{{k}}}(p)$"
    )
    middle.set_xlabel("sampled success rate $\\hat p$")
    middle.set_ylabel(f"pass@{k} weight")
    _over_rate(right, shifted, groups, rate)
    right.axvline(
        before, color="0.1", linewidth=1.2, linestyle=":", label=f"mean of $a$ {before:+.2g}"
    )
    right.axvline(after, color="0.1", linewidth=1.6, label=f"weighted mean {after:+.2g}")
    right.set_xlabel(f"contribution $w_i\\, a_i\\, /\\, E[w]$\n{SYMLOG}")
    for axes in (left, middle, right):
        plots.plain(axes)
        plots.legend_above(axes)
    return figure


def _over_rate(axes: Axes, values: Tensor, groups: Mapping[str, Tensor], rate: Tensor) -> None:
    """Draw each prompt as a mark over its success rate, which separates overlapping marks."""
    axes.axvline(0, color="0.8", linewidth=0.8)
    for name, part in groups.items():
        share = float((values[part] < 0).double().mean()) if part.any() else 0.0
        label = f"{name} ({100 * share:.0f} % below 0)"
        axes.scatter(values[part], rate[part], s=24, alpha=0.55, **_marks(name), label=label)
    _symmetric(axes, "x", values)
    axes.set_ylabel("sampled success rate $\\hat p$")


def weight_against_agreement(x: Measured, measure: str, k: int) -> Figure:
    """Draw each prompt's weight over its agreement; interference is left of 0 and high up."""
    rate, groups = _groups(x)
    a, w = cross(x, PASS_1, PASS_1, WIDEST), pass_at_k_weight(rate, k)
    figure = plots.figure(7.6, 5)
    axes = figure.subplots()
    axes.axvline(0, color="0.6", linewidth=1)
    for name, part in groups.items():
        dots = axes.scatter(
            a[part], w[part], c=rate[part], **RATES, s=34, marker=LEVEL_MARKERS[name],
            edgecolor="0.25", linewidth=0.4,
        )  # fmt: skip
        axes.scatter([], [], marker=LEVEL_MARKERS[name], color="0.5", label=name)
    figure.colorbar(dots, label="sampled success rate $\\hat p$")
    axes.set_yscale("symlog", linthresh=1e-2)
    axes.set_ylim(-2e-3, None)
    _symmetric(axes, "x", a)
    axes.set_xlabel(f"agreement $a_i$ with $\\nabla J_1$ ({_named(measure)})\n{SYMLOG}")
    axes.set_ylabel(f"pass@{k} weight (symlog axis, too)")
    plots.plain(axes)
    plots.legend_above(axes)
    return figure


def thresholds(rows: Sequence[Mapping[str, Any]], measure: str, k: int) -> Figure:
    """Draw <J_k, J_1> of each filter by both estimators, with intervals."""
    rows = [row for row in rows if row["measured"]]
    figure = plots.figure(8.2, 5)
    axes = figure.subplots()
    axes.axvline(0, color="0.4", linewidth=1)
    kinds = {
        "plugin": ("plug-in", BLUE, "o", 0.14),
        "loo": ("unbiased (loo)", VERMILLION, "s", -0.14),
    }
    for name, (label, colour, marker, shift) in kinds.items():
        for i, row in enumerate(rows):
            v = row[name]
            low, high = (v["value"] if v[x] is None else v[x] for x in ("low", "high"))
            y = len(rows) - 1 - i + shift
            axes.plot([low, high], [y, y], color=colour, linewidth=1.4)
            once = label if i == 0 else None
            axes.plot(v["value"], y, marker, color=colour, markersize=6, label=once)
            if name == "plugin" and row["naive"] is not None:
                once = "plug-in with self-terms" if i == 0 else None
                axes.plot(row["naive"], y, "x", color="0.2", markersize=6, label=once)
    axes.set_yticks(range(len(rows)), [_filter_name(row) for row in reversed(rows)], fontsize=8)
    axes.set_xlabel(f"$\\langle\\nabla J_{{{k}}}, \\nabla J_1\\rangle$ ({_named(measure)})")
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.ticklabel_format(axis="x", scilimits=(-2, 3))
    axes.set_ylabel("prompts by success rate, with their number")
    plots.plain(axes)
    plots.legend_above(axes)
    return figure


def _filter_name(row: Mapping[str, Any]) -> str:
    if row["delta_1"] is None:
        return f"all ({row['prompts']})"
    easy = f"easy > {row['delta_1']:.2f} ({row['easy']})"
    return f"{easy}, hard < {row['delta_2']:.2f} ({row['hard']})"


def kernel(features: FeatureSums) -> Figure:
    """Draw cosines of the prompts' non-zero pass@1 gradients, sorted by difficulty."""
    kind = shells(features.counts, features.n)
    g = features.gradients(PASS_1)
    has = g.norm(dim=1) > 0
    picked = []
    for name, part in (("easy", kind > MIDDLE), ("hard", kind < MIDDLE)):
        places = (part & has).nonzero().squeeze(1)[: KERNEL_PROMPTS[name]]
        picked.append(places[features.counts[places].argsort(descending=True, stable=True)])
    order, easy = torch.cat(picked), len(picked[0])
    unit = torch.nn.functional.normalize(g[order], dim=1)
    figure = plots.figure(6.4, 5.4)
    axes = figure.subplots()
    image = axes.imshow((unit @ unit.T).tolist(), **COSINES, interpolation="nearest")
    for line in (axes.axhline, axes.axvline):
        line(easy - 0.5, color="0.1", linewidth=1)
    figure.colorbar(image, label="cosine of the prompts' gradients (last layer)", shrink=0.85)
    middles = [(easy - 1) / 2, easy + (len(order) - easy - 1) / 2]
    names = [f"easy ({easy})", f"hard ({len(order) - easy})"]
    axes.set_xticks(middles, names)
    axes.set_yticks(middles, names, rotation=90, va="center")
    axes.set_xlabel("prompts, from easiest to hardest")
    axes.set_ylabel("prompts, from easiest to hardest")
    return figure


def cosine_map(cosines: Mapping[str, Any], measure: str) -> Figure:
    """Draw cos(J_k, J_m), each with its value."""
    ks = [int(k) for k in cosines["k"]]
    values = torch.tensor([[float("nan") if c is None else c for c in r] for r in cosines["value"]])
    figure = plots.figure(6.2, 5)
    axes = figure.subplots()
    image = axes.imshow(values.tolist(), **COSINES)
    for i, row in enumerate(values.tolist()):
        for j, c in enumerate(row):
            colour = "white" if abs(c) > 0.6 else "black"
            text = "–" if c != c else f"{c:.2f}"
            axes.text(j, i, text, ha="center", va="center", fontsize=9, color=colour)
    axes.set_xticks(range(len(ks)), [str(k) for k in ks])
    axes.set_yticks(range(len(ks)), [str(k) for k in ks])
    unknown = "\nwhite, –: unknown, as the estimate of a squared length is not above 0"
    axes.set(xlabel="m" + (unknown if values.isnan().any() else ""), ylabel="k")
    label = f"$\\cos(\\nabla J_k, \\nabla J_m)$ ({_named(measure)})"
    figure.colorbar(image, label=label, shrink=0.85)
    return figure


def against_k(result: Mapping[str, Any], measure: str) -> Figure:
    """Draw <J_k, J_1> against k, its measured change of sign, and the theoretical one."""
    series = result["against_k"]
    widest = next(r for r in result["groups"] if (r["delta_1"], r["delta_2"]) == (0.80, 0.15))
    figure = plots.figure(7.6, 5)
    axes = figure.subplots()
    axes.axhline(0, color="0.4", linewidth=1)
    axes.plot(series["grid"], series["curve"], color=BLUE, linewidth=1.4)
    values = [p["value"] for p in series["plugin"]]
    bars = [
        [p["value"] - (p["value"] if p["low"] is None else p["low"]) for p in series["plugin"]],
        [(p["value"] if p["high"] is None else p["high"]) - p["value"] for p in series["plugin"]],
    ]
    axes.errorbar(
        series["k"], values, yerr=bars, fmt="o", color=BLUE, capsize=3, label="plug-in, 95 %"
    )
    axes.plot(series["k"], series["loo"], "s", color=VERMILLION, mfc="none", label="unbiased (loo)")
    change = series["sign_change"]["value"]
    if change is not None:
        label = f"measured sign change {change:.2f}"
        axes.axvline(change, color="0.1", linestyle="--", linewidth=1.2, label=label)
    star = widest["k_star"]
    if star <= series["k"][-1]:
        label = f"theory: negative from k* = {star:.2f}"
        axes.axvline(star, color=GREEN, linestyle="-.", linewidth=1.6, label=label)
    axes.set_xscale("log", base=2)
    axes.set_xticks(series["k"], [str(k) for k in series["k"]])
    axes.set_xlabel("k")
    axes.set_ylabel(f"$\\langle\\nabla J_k, \\nabla J_1\\rangle$ ({_named(measure)})")
    plots.plain(axes)
    plots.legend_above(axes)
    return figure


def proxy(features: FeatureSums, ghost: Measured, figures: Mapping[str, Any]) -> Figure:
    """Draw each prompt's agreement by the last layer against the exact one."""
    _, groups = _groups(features)
    a, b = (cross(x, PASS_1, PASS_1, WIDEST) for x in (features, ghost))
    figure = plots.figure(6.4, 5)
    axes = figure.subplots()
    axes.axhline(0, color="0.7", linewidth=0.8)
    axes.axvline(0, color="0.7", linewidth=0.8)
    for name, part in groups.items():
        axes.scatter(a[part], b[part], s=26, alpha=0.6, **_marks(name), label=name)
    _symmetric(axes, "x", a)
    _symmetric(axes, "y", b)
    overall = figures["proxy"][0] if figures["proxy"] else {"spearman": None}
    if overall["spearman"] is not None:
        axes.plot([], [], " ", label=f"Spearman {overall['spearman']:.2f} over all prompts")
    axes.set_xlabel(f"agreement by the last layer\n{SYMLOG}")
    axes.set_ylabel(f"agreement over all parameters (ghost)\n{SYMLOG}")
    plots.plain(axes)
    plots.legend_above(axes)
    return figure


def _marks(name: str) -> Look:
    """Return a prompt's mark by its group, the same in all pictures."""
    shape = {"color": COLOURS[name], "marker": LEVEL_MARKERS[name]}
    return {**shape, "edgecolor": "white", "linewidth": 0.3}


def _named(measure: str) -> str:
    return {"ghost": "all parameters", "last_layer": "last layer"}[measure]


def _symmetric(axes: Axes, way: Literal["x", "y"], values: Tensor) -> None:
    """Set a logarithmic scale on both sides of 0, with few labels, as all would not fit."""
    largest = float(values.abs().max()) or 1.0
    scale, axis = (axes.set_xscale, axes.xaxis) if way == "x" else (axes.set_yscale, axes.yaxis)
    scale("symlog", linthresh=largest / 100)
    axes.set(**{f"{way}lim": (-2 * largest, 2 * largest)})
    step = 10.0 ** float(torch.tensor(largest).log10().floor())
    axis.set_ticks([-step, -step / 10, 0, step / 10, step])
    axis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_minor_formatter(lambda value, _: "")
