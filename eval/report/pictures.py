"""Pictures that compare runs."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import fmean

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from eval.report import plots
from eval.report.bases import Base, bases
from eval.report.compare import Row
from eval.report.curve import Curve, curve_labels, mixture, on_curve
from eval.report.labels import measured_keys
from eval.report.places import Label, label_ends, label_points
from eval.report.plots import FRONTIER, MIXTURES, OF_LEVEL, START, Look
from eval.report.runs import Run
from eval.scores.difficulty import EASY, HARD, LEVELS, moves
from eval.scores.intervals import Interval
from eval.tasks.registry import build_task

Groups = Mapping[str, Sequence[Run]]  # by their labels

MOST_PATHS = 4  # with more runs than these the plane shows no paths


def looks(groups: Groups, curves: Sequence[Curve]) -> dict[str, Look]:
    """Return colour, line and mark of each run; the mixtures of a curve are grey, dark for much."""
    mixtures = {}
    for name, runs in groups.items():
        mix = mixture(runs[0])
        if mix and on_curve(runs[0], curves):  # 0 is pass@k alone
            mixtures[name] = mix
    lambdas = sorted(set(mixtures.values()))
    others = [name for name in groups if name not in mixtures]
    look = {name: plots.style(i) | {"marker": plots.marker(i)} for i, name in enumerate(others)}
    for name, mix in mixtures.items():
        shade = 0.65 - 0.5 * lambdas.index(mix) / len(lambdas)
        look[name] = {"color": f"{shade:.2f}", "linestyle": "-"}
    return look


def pareto(rows: Sequence[Row], groups: Groups, curves: Sequence[Curve], k: int) -> Figure:
    """Draw pass@k against pass@1: the base, and the runs' mean paths and ends with intervals.

    The mixtures of a curve are one line. The picture also has the best reachable values if the task
    knows them.
    """
    figure = plots.figure(8.5, 5.4)
    axes = figure.subplots()
    plots.plain(axes)
    look = looks(groups, curves)
    own = [row for row in rows if "marker" in look[row["run"]]]
    labels = []
    for row in own:
        if len(own) <= MOST_PATHS:
            _mean_path(axes, groups[row["run"]], row, k, look[row["run"]])
        labels.append(_end(axes, row, k, look[row["run"]]))
    labels += _mixtures(axes, curves)
    labels += _starts(axes, bases(rows, groups, k), k)
    reachable = frontier(groups, k)
    if reachable:
        axes.plot(*zip(*reachable, strict=True), **FRONTIER)
        labels.append(Label("best reachable", reachable[10::10], FRONTIER["color"]))
    axes.set(xlabel=f"pass@1 ({_kind(rows)})", ylabel=f"pass@{k} ({_kind(rows)})")
    axes.set_title(f"pass@{k} against pass@1{_on(groups)}", fontsize=plots.TITLE)
    label_points(axes, labels)
    return figure


def _on(groups: Groups) -> str:
    """Return the task's name, if all runs have the same, as the end of a title."""
    tasks = {runs[0].config["task.name"].rpartition(":")[2] for runs in groups.values()}
    return f" on {tasks.pop()}" if len(tasks) == 1 else ""


def _kind(rows: Sequence[Row]) -> str:
    return "exact" if rows[0]["exact"] else "sampled"


def _mean_path(axes: Axes, runs: Sequence[Run], row: Row, k: int, look: Look) -> None:
    """Draw the mean over seeds of pass@1 and pass@k, step by step."""
    means = [
        [fmean(values) for _, values in _common([dict(run.path(x, row["exact"])) for run in runs])]
        for x in ("pass@1", f"pass@{k}")
    ]
    axes.plot(*means, color=look["color"], linestyle=look["linestyle"], linewidth=1.1, alpha=0.7)


def _end(axes: Axes, row: Row, k: int, look: Look) -> Label:
    """Draw a run's end with its intervals."""
    x, y = (row[metric]["after"] for metric in ("pass@1", f"pass@{k}"))
    axes.errorbar(
        x["value"], y["value"], xerr=_bars(x), yerr=_bars(y), color=look["color"],
        marker=look["marker"], markersize=7, markeredgecolor="white", capsize=2, elinewidth=1,
        linestyle="none", zorder=4,
    )  # fmt: skip
    return Label(row["run"], [(x["value"], y["value"])], look["color"])


def _mixtures(axes: Axes, curves: Sequence[Curve]) -> list[Label]:
    """Draw each curve of fixed mixtures, with a dot for each lambda; 0 is a run of its own.

    A curve of one mixture has no name beside that of its dot.
    """
    labels = []
    for curve, name in zip(curves, curve_labels(curves), strict=True):
        points = curve.points
        axes.plot(*zip(*points, strict=True), **MIXTURES)
        for mix, point in zip(curve.lambdas, points, strict=True):
            if mix > 0:
                axes.plot(*point, "o", color="0.25", markersize=4)
                labels.append(Label(f"λ = {mix:g}", [point], "0.25"))
        if sum(mix > 0 for mix in curve.lambdas) > 1:
            middles = [((a + c) / 2, (b + d) / 2) for (a, b), (c, d) in pairwise(points)]
            labels.append(Label(name, middles, MIXTURES["color"]))
    return labels


def _starts(axes: Axes, starts: Sequence[Base], k: int) -> list[Label]:
    labels = []
    for base in starts:
        place = base.scores["pass@1"], base.scores[f"pass@{k}"]
        axes.plot(*place, **START, linestyle="none", zorder=5)
        labels.append(Label(base.label, [place], START["color"], START["markersize"] / 3))
    return labels


def _bars(x: Interval) -> list[list[float]] | None:
    if x["low"] is None or x["high"] is None:
        return None
    return [[x["value"] - max(x["low"], 0.0)], [min(x["high"], 1.0) - x["value"]]]


def frontier(groups: Groups, k: int) -> list[tuple[float, float]] | None:
    """Return the best reachable (pass@1, pass@k) of the runs' task, or None if unknown."""
    configs = [runs[0].config for runs in groups.values()]
    if any(key.startswith("task.") for key in measured_keys(configs)):
        return None  # several tasks
    if ":" in configs[0]["task.name"]:
        return None  # the user's file may be gone
    options = {key.removeprefix("task."): x for key, x in configs[0].items() if key[:5] == "task."}
    return build_task(options).frontier(k)


def against_k(rows: Sequence[Row], groups: Groups, look: Mapping[str, Look], k: int) -> Figure:
    """Draw pass@m against m, before and after; k is the one of the runs."""
    figure = plots.figure(8.5, 5)
    axes = figure.subplots()
    plots.plain(axes)
    labels, ticks = [], set[int]()
    start: Look = {"color": START["color"], "marker": "*", "markersize": 9, "linewidth": 2.5}
    lines = [(base.label, base.scores, start) for base in bases(rows, groups, k)]
    for row in rows:
        scores = {x: row[x]["after"]["value"] for x in row if x.startswith("pass@")}
        lines.append((row["run"], scores, {"marker": "o", "markersize": 5} | look[row["run"]]))
    for name, scores, mark in lines:
        ks, values = [int(x.removeprefix("pass@")) for x in scores], [*scores.values()]
        axes.plot(ks, values, **mark)
        labels.append(Label(name, [(ks[-1], values[-1])], mark["color"]))
        ticks |= {*ks}
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted(ticks), [str(x) for x in sorted(ticks)])
    axes.set(xlabel="k", ylabel=f"pass@k ({_kind(rows)})")
    axes.set_title(f"pass@k of the base and after training{_on(groups)}", fontsize=plots.TITLE)
    label_ends(axes, labels)
    return figure


def over_steps(rows: Sequence[Row], groups: Groups, look: Mapping[str, Look], k: int) -> Figure:
    """Draw pass@1 and pass@k over training: mean over seeds, with the range of the seeds."""
    figure = plots.figure(13, 5)
    band = ", band: range" if any(row["seeds"] > 1 for row in rows) else ""
    text = f"Over training{_on(groups)}: {_kind(rows)} values (line: mean{band} over seeds)"
    plots.titled(figure, text if band else text.partition(" (")[0])
    starts = bases(rows, groups, k)
    panels = figure.subplots(1, 2, sharex=True)
    for axes, metric in zip(panels, ("pass@1", f"pass@{k}"), strict=True):
        labels = []
        for row in rows:
            paths = [dict(run.path(metric, row["exact"])) for run in groups[row["run"]]]
            end = _over_seeds(axes, look[row["run"]], paths)
            labels.append(Label(row["run"], [end], look[row["run"]]["color"]))
        for base in starts:
            height = base.scores[metric]
            axes.axhline(height, color=START["color"], linewidth=1, linestyle=(0, (2, 2)))
            labels.append(Label(base.label, [(end[0], height)], START["color"]))
        axes.set_title(metric, fontsize=plots.TITLE)
        plots.over_steps(axes)
        plots.plain(axes)
        label_ends(axes, labels)
    return figure


def _common(paths: Sequence[Mapping[int, float]]) -> list[tuple[int, list[float]]]:
    """Return (step, values of all paths) at the paths' common steps."""
    steps = sorted(set(paths[0]).intersection(*paths))
    return [(step, [path[step] for path in paths]) for step in steps]


def _over_seeds(
    axes: Axes, look: Look, paths: Sequence[Mapping[int, float]], label: str = ""
) -> tuple[float, float]:
    """Draw a mean over seeds with the range of the seeds; return the end of the line."""
    steps, values = zip(*_common(paths), strict=True)
    mean = [fmean(x) for x in values]
    axes.fill_between(
        steps, list(map(min, values)), list(map(max, values)), color=look["color"],
        alpha=0.12 if "marker" in look else 0.05, linewidth=0,
    )  # fmt: skip
    every = max(1, len(steps) // 8)
    axes.plot(steps, mean, **look, markevery=every, markersize=4, label=label)
    return steps[-1], mean[-1]


def of_scalars(names: Sequence[str], groups: Groups, look: Mapping[str, Look]) -> Figure:
    """Draw scalars of metrics.jsonl over training, one panel each, for the runs with them."""
    figure, panels = plots.panels(len(names), 3, (3.9, 3.0), 0.5)
    known: dict[str, Artist] = {}
    for axes, name in zip(panels, names, strict=True):
        for group, runs in groups.items():
            paths = [dict(run.scalar(name)) for run in runs]
            if all(paths):
                _over_seeds(axes, look[group], paths, group)
        axes.set_title(name.replace("-", "\n− "), fontsize=plots.TITLE)
        plots.over_steps(axes)
        plots.plain(axes)
        known |= {str(line.get_label()): line for line in axes.lines}
    order = [group for group in groups if group in known]
    figure.legend(
        [known[x] for x in order], order, loc="outside lower center", ncols=3, frameon=False,
        fontsize=plots.TEXT,
    )  # fmt: skip
    return figure


def flows(groups: Groups) -> Figure:
    """Draw moves between easy, medium and hard, as shares of the problems of all seeds."""
    figure, panels = plots.panels(len(groups), 4, (FLOW, 3.3), 0.8)
    for axes, (name, runs) in zip(panels, groups.items(), strict=True):
        tables = [moves(run.records("before"), run.records("after")) for run in runs]
        _alluvial(axes, [[sum(t[i][j] for t in tables) for j in range(3)] for i in range(3)])
        axes.set_title(plots.wrapped(name, FLOW, plots.TITLE), fontsize=plots.TITLE)
    levels = f"easy above {EASY:.2f}, hard below {HARD:.2f}, medium between"
    text = f"Problems{_on(groups)} by success rate, before and after training: {levels}"
    plots.titled(figure, text)
    return figure


FLOW = 3.4  # width of a panel in inches


GAP, WIDTH = 0.03, 0.06  # between two bars, and of a bar


def _alluvial(axes: Axes, table: Sequence[Sequence[int]]) -> None:
    """Draw ribbons from the levels before (left) to the levels after (right); easy on top."""
    total = sum(map(sum, table))
    shares = [[count / total for count in row] for row in table]
    tops = [
        _stack(axes, 0.0, [sum(row) for row in shares]),
        _stack(axes, 1.0, [sum(column) for column in zip(*shares, strict=True)]),
    ]
    way = [i / 24 for i in range(25)]
    xs = [WIDTH / 2 + (1 - WIDTH) * t for t in way]
    for i, name in enumerate(LEVELS):
        for j, share in enumerate(shares[i]):
            step = tops[1][j] - tops[0][i]
            upper = [tops[0][i] + step * t * t * (3 - 2 * t) for t in way]
            lower = [y - share for y in upper]
            axes.fill_between(xs, lower, upper, color=OF_LEVEL[name], alpha=0.55, linewidth=0)
            tops[0][i] -= share
            tops[1][j] -= share
    axes.set(xlim=(-0.75, 1.75), ylim=(-2 * GAP - 0.1, 1.1))  # the same in all panels
    axes.axis("off")


def _stack(axes: Axes, x: float, shares: Sequence[float]) -> list[float]:
    """Draw a bar for each level, one under the other, with its share; return the bars' tops."""
    at, tops, side = 1.0, [], 1 if x else -1
    axes.text(x, 1.03, "after" if x else "before", ha="center", va="bottom", fontsize=plots.TEXT)
    for name, share in zip(LEVELS, shares, strict=True):
        tops.append(at)
        if share:
            axes.bar(
                x, -share, WIDTH, bottom=at, color=OF_LEVEL[name], edgecolor="0.3", linewidth=0.5
            )
            percent = "< 1 %" if share < 0.005 else f"{100 * share:.0f} %"
            axes.text(
                x + side * WIDTH, at - share / 2, f"{name} {percent}", va="center",
                ha="left" if x else "right", fontsize=plots.TEXT,
            )  # fmt: skip
        at -= share + GAP
    return tops
