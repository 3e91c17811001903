"""Pictures of the toy: the paper's figures 2 to 5, and every rule's path."""

import math
from collections.abc import Callable

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor

from eval.report import plots
from eval.report.places import Label, label_points
from eval.report.plots import (
    BLUE,
    COSINES,
    FRONTIER,
    LEVEL_MARKERS,
    OF_LEVEL,
    PURPLE,
    START,
    YELLOW,
    Look,
    marker,
    style,
)
from eval.toy.study import Study, agreements, named
from surgery.toy import Bandit, cosine_kernel, objective, population, slope, success

COLOURS = OF_LEVEL | {"population": "0.2"}
MARKERS = LEVEL_MARKERS | {"population": "s"}
ON_1, ON_K = BLUE, PURPLE  # pass@1 and pass@k
SHADE = YELLOW

# one colour for each path
PATHS = (*plots.COLOURS, "#7F3C1D", "#8C8C8C", "#5B2A86", "#8FBF3F", "#B0003A")


def _j(k: int) -> str:
    """Return J with a subscript."""
    return "J" + str(k).translate(str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉"))


def kernel(study: Study) -> Figure:
    """Draw figure 2: the cosine of each pair of gradients, of 120 easy and 80 hard prompts."""
    toy = population(study.setting.delta, 0.4, 200)
    cosines = cosine_kernel(study.setting.theta, toy)
    figure = plots.figure(6.6, 5.4)
    axes = figure.subplots()
    image = axes.imshow(cosines, **COSINES, interpolation="nearest")
    figure.colorbar(image, label="cosine of ∇p(x) and ∇p(x′)", shrink=0.9)
    axes.axhline(119.5, color="0.1", linewidth=1)
    axes.axvline(119.5, color="0.1", linewidth=1)
    for at, name in ((60, "easy"), (160, "hard")):
        for place in ((at, -8), (-8, at)):
            axes.plot(
                *place, marker=MARKERS[name], markersize=9, color=COLOURS[name],
                markeredgecolor="0.2", clip_on=False,
            )  # fmt: skip
    axes.set_xlim(-0.5, 199.5)
    axes.set_ylim(199.5, -0.5)
    ticks = [60, 160], ["120 easy prompts, by s", "80 hard prompts, by s"]
    axes.set_xticks(*ticks)
    axes.set_yticks(*ticks, rotation=90, va="center")
    axes.tick_params(length=0)
    axes.tick_params(axis="y", pad=18)
    for name in ("easy", "hard"):
        axes.plot(
            [], [], marker=MARKERS[name], markersize=9, color=COLOURS[name], linestyle="none",
            markeredgecolor="0.2", label=f"{name} prompts",
        )  # fmt: skip
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.05), ncols=2, fontsize=8, frameon=False)
    plots.titled(figure, "Cosines of the prompts' gradients")
    return figure


def _window(study: Study) -> tuple[Tensor, Tensor]:
    """Return the corners of the rectangle that contains all paths, with a margin."""
    every = torch.cat(list(study.paths.values())).clamp(-6, 6)
    return every.amin(0) - 1.2, every.amax(0) + 1.2


def _grid(study: Study, points: int = 61) -> tuple[Tensor, Tensor, Tensor]:
    """Return theta_1, theta_2 of the window, and theta [points, points, 2]."""
    low, high = _window(study)
    one, two = (torch.linspace(low[i], high[i], points, dtype=torch.float64) for i in (0, 1))
    return one, two, torch.stack(torch.meshgrid(one, two, indexing="xy"), -1)


def _fewer(study: Study) -> Bandit:
    """Return a tenth of the population, at its quantiles: the same map, ten times as fast."""
    return population(study.setting.delta, study.setting.hard_share, 600)


def _conflict(axes: Axes, study: Study) -> None:
    """Shade where <grad J_k, grad J_1> < 0."""
    toy, k = _fewer(study), study.setting.k
    one, two, theta = _grid(study)
    dot = torch.stack([(slope(x, toy, 1) * slope(x, toy, k)).sum(-1) for x in theta])
    axes.contourf(one, two, dot, levels=[-torch.inf, 0], colors=[SHADE], alpha=0.35)
    axes.contour(one, two, dot, levels=[0], colors=["0.45"], linewidths=0.8, linestyles="--")
    axes.set(xlabel="θ₁ (bias)", ylabel="θ₂ (weight of s)")


def plane(study: Study) -> Figure:
    """Draw figure 3: J_1 and J_k over (theta_1, theta_2), the conflict, and both gradients."""
    toy, k = _fewer(study), study.setting.k
    one, two, theta = _grid(study)
    few = _grid(study, 10)[2][1:-1, 1:-1]
    figure = plots.figure(11.5, 5.4)
    for axes, m in zip(figure.subplots(1, 2, sharey=True), (1, k), strict=True):
        values = torch.stack([objective(row, toy, m) for row in theta])
        _conflict(axes, study)
        lines = axes.contour(one, two, values, levels=12, colors="0.35", linewidths=0.8)
        axes.clabel(lines, fontsize=7, fmt="%.2f")
        for way, colour in ((1, ON_1), (k, ON_K)):
            arrow = slope(few, toy, way)
            arrow = arrow / arrow.norm(dim=-1, keepdim=True)
            axes.quiver(
                *few.unbind(-1), *arrow.unbind(-1), color=colour, width=0.0035,
                scale=22, headwidth=4, zorder=3,
            )  # fmt: skip
        axes.plot(*study.setting.start, **START, zorder=4)
        axes.set_title(f"contours of pass@{m}", fontsize=10)
    handles = [
        Patch(color=ON_1, label="∇J₁"),
        Patch(color=ON_K, label=f"∇{_j(k)}"),
        Patch(facecolor=SHADE, alpha=0.35, edgecolor="0.45", linestyle="--", label="conflict"),
        *axes.plot([], [], **START, linestyle="none", label="start"),
    ]
    plots.legend_beside(axes, handles=handles)
    plots.titled(figure, f"Where pass@{k} and pass@1 conflict")
    return figure


def agreement(study: Study) -> Figure:
    """Draw figure 4: agreements a_i of easy and hard prompts, at the start and after pass@k."""
    toy, setting = study.toy, study.setting
    figure = plots.figure(11.5, 4.4)
    cases = {"at the start": setting.theta, f"after pass@{setting.k}": study.paths["none"][-1]}
    panels = figure.subplots(1, 2)
    for axes, (when, theta) in zip(panels, cases.items(), strict=True):
        a = agreements(study, theta)
        edges = torch.linspace(float(a.min()), float(a.max()), 50).tolist()
        for name, group, hatch in (("easy", ~toy.hard, None), ("hard", toy.hard, "////")):
            colour = COLOURS[name]
            weight = torch.full_like(a[group], 1 / len(a))
            label = f"{name} ({100 * float((a[group] < 0).double().mean()):.0f} % below 0)"
            axes.hist(
                a[group], bins=edges, weights=weight, histtype="stepfilled", color=colour,
                alpha=0.45, edgecolor=colour, linewidth=1.2, hatch=hatch, label=label,
            )  # fmt: skip
            axes.plot(
                float(a[group].mean()), 0, marker=MARKERS[name], markersize=9, color=colour,
                markeredgecolor="0.1", clip_on=False, zorder=5, linestyle="none",
                label=f"mean, {name}",
            )  # fmt: skip
        axes.axvline(0, color="0.2", linewidth=1, linestyle=(0, (2, 2)))
        axes.set(xlabel="agreement a(x) = ⟨∇p(x), ∇J₁⟩", ylabel="share of all prompts")
        axes.set_title(when, fontsize=10)
        axes.set_ylim(bottom=0)
        plots.plain(axes)
        plots.legend_under(axes)
    plots.titled(figure, "Agreement of the prompts with the gradient of pass@1")
    return figure


def training(study: Study) -> Figure:
    """Draw figure 5: pass@k and pass@1 under pass@k, of all, easy and hard prompts."""
    toy, k = study.toy, study.setting.k
    p = success(study.paths["none"], toy)
    figure = plots.figure(11.5, 4.4)
    everyone = torch.ones_like(toy.hard)
    groups = {"population": everyone, "easy": ~toy.hard, "hard": toy.hard}
    panels = figure.subplots(1, 2, sharey=True)
    for axes, m in zip(panels, (k, 1), strict=True):
        for name, group in groups.items():
            value = (1 - (1 - p[:, group]) ** m).mean(1)
            axes.plot(
                value, color=COLOURS[name], marker=MARKERS[name], markevery=30, markersize=6,
                markeredgecolor="white", linewidth=2.2 if name == "population" else 1.5, label=name,
            )  # fmt: skip
        axes.set(ylabel=f"pass@{m}", ylim=(0, 1.03))
        plots.over_steps(axes)
        plots.plain(axes)
    plots.legend_beside(panels[-1])
    plots.titled(figure, f"Training on pass@{k}")
    return figure


def paths(study: Study) -> Figure:
    """Draw every rule's path in the plane of theta, and of (J_1, J_k) with the frontier."""
    k = study.setting.k
    figure = plots.figure(13, 6.4)
    left, right = figure.subplots(1, 2)
    _conflict(left, study)
    right.plot(*study.plane(study.frontier), **FRONTIER)
    left.plot(*study.frontier.T, **FRONTIER)
    for i, (name, path) in enumerate(study.paths.items()):
        label = named(name, k)
        for axes, (xs, ys) in ((left, path.T.tolist()), (right, study.planes[name])):
            axes.plot(xs, ys, **_style(i), linewidth=1.3, alpha=0.8)
            axes.plot(
                xs[-1], ys[-1], **_style(i), marker=marker(i), markeredgecolor="white",
                markersize=13 - 0.45 * i, zorder=4,
            )  # fmt: skip
        left.plot([], [], **_style(i), marker=marker(i), markersize=7, label=label)
    start = study.setting.theta
    left.plot(*start, **START, zorder=5)
    right.plot(*study.plane(start[None]), **START, zorder=5, linestyle="none")
    low, high = _window(study)
    left.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
    left.set_title(f"shaded: ∇J₁ and ∇{_j(k)} conflict", fontsize=10)
    right.set(xlabel="pass@1", ylabel=f"pass@{k}")
    plots.plain(right)
    plots.titled(figure, f"Each rule's path from the start, {study.setting.steps} steps")
    figure.legend(
        *left.get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False,
        fontsize=plots.TEXT, handlelength=3,
    )  # fmt: skip
    label_points(right, _labels(study))
    return figure


def _style(i: int) -> Look:
    """Return colour and line of a path; no two have the same."""
    return style(i) | {"color": PATHS[i % len(PATHS)]}


def _labels(study: Study, near: float = 0.006) -> list[Label]:
    """Return a label for the start, the frontier, and all rules that end near each other."""
    together: dict[tuple[float, float], list[str]] = {}
    colours: dict[tuple[float, float], str] = {}
    for i, (name, (xs, ys)) in enumerate(study.planes.items()):
        end = (xs[-1], ys[-1])
        place = next((x for x in together if math.dist(x, end) < near), end)
        together.setdefault(place, []).append(named(name, study.setting.k))
        colours.setdefault(place, _style(i)["color"])
    start, (xs, ys) = study.plane(study.setting.theta[None]), study.plane(study.frontier)
    return [
        Label("start", [(start[0][0], start[1][0])], START["color"]),
        *(
            Label("\n".join(names), [place], colours[place] if len(names) == 1 else "0.2")
            for place, names in together.items()
        ),
        Label("Pareto frontier", list(zip(xs, ys, strict=True))[::5], FRONTIER["color"]),
    ]


PICTURES: dict[str, Callable[[Study], Figure]] = {
    "kernel": kernel,
    "plane": plane,
    "agreement": agreement,
    "training": training,
    "paths": paths,
}
