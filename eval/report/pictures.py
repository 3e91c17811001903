"""Pictures that compare runs."""

from collections.abc import Mapping, Sequence
from statistics import fmean

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from eval.report import plots
from eval.report.compare import Row
from eval.report.curve import Curve
from eval.report.plots import FRONTIER, OF_LEVEL, START, marker, style
from eval.report.runs import Run
from eval.scores.difficulty import LEVELS, moves
from eval.scores.intervals import Interval
from eval.tasks.registry import build_task


def pareto(
    rows: Sequence[Row], groups: Mapping[str, list[Run]], curves: Sequence[Curve], k: int
) -> Figure:
    """Draw pass@k against pass@1: the base, every run's path, ends with intervals over seeds.

    The picture also has the curve of the fixed mixtures, and the best reachable values if the task
    knows them.
    """
    figure = plots.figure(9.5, 6)
    axes = figure.subplots()
    plots.plain(axes)
    first = next(iter(groups.values()))[0]
    reachable = frontier(first, k)
    if reachable:
        axes.plot(*zip(*reachable, strict=True), **FRONTIER, label="best reachable")
    for n, curve in enumerate(curves):
        points = curve.points
        label = "fixed mixtures" if n == 0 else None
        axes.plot(*zip(*points, strict=True), color="0.1", linewidth=2.2, alpha=0.6, label=label)
        for mix, point in zip(curve.lambdas, points, strict=True):
            axes.annotate(
                f"{mix:g}", point, (4, -11), textcoords="offset points", fontsize=7, color="0.25"
            )
    for i, row in enumerate(rows):
        ends = [row[metric]["after"] for metric in ("pass@1", f"pass@{k}")]
        for run in groups[row["run"]]:
            metrics = ("pass@1", f"pass@{k}")
            path = [[value for _, value in run.path(x, row["exact"])] for x in metrics]
            axes.plot(*path, **style(i), linewidth=0.6, alpha=0.35)
        axes.errorbar(
            ends[0]["value"],
            ends[1]["value"],
            xerr=_bars(ends[0]),
            yerr=_bars(ends[1]),
            color=style(i)["color"],
            marker=marker(i),
            markersize=7,
            markeredgecolor="white",
            capsize=2,
            elinewidth=1,
            linestyle="none",
            label=row["run"],
        )
    bases = {(row["pass@1"]["before"], row[f"pass@{k}"]["before"]) for row in rows}
    xs, ys = zip(*bases, strict=True)
    axes.plot(xs, ys, **START, linestyle="none", label="base")
    kind = "true" if rows[0]["exact"] else "sampled"
    axes.set(xlabel=f"pass@1 ({kind})", ylabel=f"pass@{k} ({kind})")
    plots.legend_beside(axes)
    return figure


def _bars(x: Interval) -> list[list[float]] | None:
    if x["low"] is None or x["high"] is None:
        return None
    return [[x["value"] - max(x["low"], 0.0)], [min(x["high"], 1.0) - x["value"]]]


def frontier(run: Run, k: int) -> list[tuple[float, float]] | None:
    """Return the best reachable (pass@1, pass@k) of the run's task, or None if unknown."""
    if ":" in run.config["task.name"]:
        return None  # the user's file may be gone
    options = {key.removeprefix("task."): x for key, x in run.config.items() if key[:5] == "task."}
    return build_task(options).frontier(k)


def against_k(rows: Sequence[Row]) -> Figure:
    """Draw pass@k against k, before and after."""
    figure = plots.figure(8.5, 5)
    axes = figure.subplots()
    plots.plain(axes)
    for i, row in enumerate(rows):
        names = [name for name in row if name.startswith("pass@")]
        ks = [int(name.removeprefix("pass@")) for name in names]
        if i == 0:
            before = [row[name]["before"] for name in names]
            axes.plot(ks, before, color="0.2", marker="*", linewidth=2.5, label="base")
        values = [row[name]["after"]["value"] for name in names]
        axes.plot(ks, values, **style(i), marker=marker(i), markersize=5, label=row["run"])
    axes.set_xscale("log", base=2)
    axes.set_xticks(ks, [str(k) for k in ks])
    axes.set(xlabel="k", ylabel="pass@k after training")
    plots.legend_beside(axes)
    return figure


def over_steps(rows: Sequence[Row], groups: Mapping[str, list[Run]], k: int) -> Figure:
    """Draw pass@1 and pass@k over training: mean over seeds, with the range of the seeds."""
    figure = plots.figure(12, 5)
    panels = figure.subplots(1, 2, sharex=True)
    for axes, metric in zip(panels, ("pass@1", f"pass@{k}"), strict=True):
        for i, row in enumerate(rows):
            paths = [dict(run.path(metric, row["exact"])) for run in groups[row["run"]]]
            _over_seeds(axes, i, row["run"], paths)
        axes.axhline(rows[0][metric]["before"], color="0.2", linewidth=1, linestyle=(0, (2, 2)))
        axes.set(xlabel="step", ylabel=metric)
        plots.plain(axes)
    plots.legend_beside(panels[-1])
    return figure


def _over_seeds(axes: Axes, i: int, label: str, paths: Sequence[dict[int, float]]) -> None:
    """Draw line i: the mean over seeds at their common steps, and the range of the seeds."""
    steps = sorted(set(paths[0]).intersection(*paths))
    values = [[path[step] for path in paths] for step in steps]
    low, high = [min(x) for x in values], [max(x) for x in values]
    mean = [fmean(x) for x in values]
    axes.fill_between(steps, low, high, color=style(i)["color"], alpha=0.12, linewidth=0)
    every = max(1, len(steps) // 8)
    axes.plot(steps, mean, **style(i), marker=marker(i), markevery=every, markersize=4, label=label)


def of_scalars(names: Sequence[str], groups: Mapping[str, list[Run]]) -> Figure:
    """Draw scalars of metrics.jsonl over training, one panel each, for the runs with them."""
    figure, panels = plots.panels(len(names), 3, (3.6, 2.9), 0.5)
    known: dict[str, Artist] = {}
    for axes, name in zip(panels, names, strict=True):
        for i, (group, runs) in enumerate(groups.items()):
            paths = [dict(run.scalar(name)) for run in runs]
            if all(paths):
                _over_seeds(axes, i, group, paths)
        axes.set_title(name.replace("-", "\n− "), fontsize=9)
        axes.set_xlabel("step")
        plots.plain(axes)
        known |= {str(line.get_label()): line for line in axes.lines}
    order = [group for group in groups if group in known]
    figure.legend(
        [known[x] for x in order], order, loc="outside lower center", ncols=3, fontsize=8,
        frameon=False,
    )  # fmt: skip
    return figure


def flows(groups: Mapping[str, list[Run]]) -> Figure:
    """Draw moves between easy, medium and hard, as shares of the problems of all seeds."""
    figure, panels = plots.panels(len(groups), 4, (3.1, 2.7), 0.4)
    for axes, (name, runs) in zip(panels, groups.items(), strict=True):
        tables = [moves(run.records("before"), run.records("after")) for run in runs]
        _alluvial(axes, [[sum(t[i][j] for t in tables) for j in range(3)] for i in range(3)])
        axes.set_title(name, fontsize=9)
    return figure


def _alluvial(axes: Axes, table: Sequence[Sequence[int]]) -> None:
    """Draw ribbons from the levels before (left) to the levels after (right); easy on top."""
    total = sum(map(sum, table))
    gap = 0.03
    ends = [sum(row) for row in table], [sum(column) for column in zip(*table, strict=True)]
    tops = []
    for x, sizes in zip((0.0, 1.0), ends, strict=True):
        at, starts = 1.0, []
        for name, size in zip(LEVELS, sizes, strict=True):
            share = size / total
            starts.append(at)
            axes.bar(
                x, -share, 0.06, bottom=at, color=OF_LEVEL[name], edgecolor="0.3", linewidth=0.5
            )
            if share:
                side = "right" if x == 0 else "left"
                text = f"{name}\n{100 * share:.0f} %"
                axes.text(
                    x + (0.06 if x else -0.06),
                    at - share / 2,
                    text,
                    ha=side,
                    va="center",
                    fontsize=7,
                )
            at -= share + gap
        tops.append(starts)
    curve = [i / 24 for i in range(25)]
    ease = [t * t * (3 - 2 * t) for t in curve]
    for i, name in enumerate(LEVELS):
        for j in range(len(LEVELS)):
            share = table[i][j] / total
            upper = [tops[0][i] + (tops[1][j] - tops[0][i]) * e for e in ease]
            xs = [0.03 + 0.94 * t for t in curve]
            lower = [y - share for y in upper]
            axes.fill_between(xs, lower, upper, color=OF_LEVEL[name], alpha=0.55, linewidth=0)
            tops[0][i] -= share
            tops[1][j] -= share
    axes.set_xlim(-0.55, 1.55)
    axes.axis("off")
