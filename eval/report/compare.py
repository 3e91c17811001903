"""A comparison of runs: one row per group of seeds, with intervals and verdicts."""

import csv
import io
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import torch

from eval.files import leaves
from eval.report.curve import Curve, above, curves
from eval.report.runs import Run, grouped
from eval.report.tables import NONE, markdown_table, number, spread, table, without
from eval.scores.difficulty import by_difficulty
from eval.scores.intervals import (
    LEVEL,
    Estimate,
    Interval,
    holm,
    seeds_and_problems,
    student,
)
from eval.scores.passk import CANNOT_TELL, change, moved, problem_scores

Row = dict[str, Any]


def compare(runs: Sequence[Run], margin: float = 0.0) -> list[Row]:
    """Return one row per group, with exact values if its runs have them and it is no single seed.

    A single seed has no spread over seeds: its interval is over problems, of sampled values, and
    its verdict that of the run itself. Over several seeds the hypothesis is that the change lies
    within the margin. If Holm's p over all these rows is below 0.05, the verdict is better or
    worse; else it is "cannot tell". So a single seed more changes no other row.
    """
    groups = grouped(runs)
    true = curves([x for x in groups.values() if _known(x)], True)
    sampled = curves(list(groups.values()), False)
    rows, estimates = [], []
    for name, members in groups.items():
        metrics = list(dict.fromkeys(("pass@1", members[0].k)))
        known = _known(members)
        exact = known and len(members) > 1
        estimates.append({metric: _estimate(members, metric, exact) for metric in metrics})
        distance, distance_exact = _distance(members, true if known else [], sampled)
        row: Row = {
            "run": name,
            "folder": str(members[0].place),
            "seeds": len(members),
            "k": members[0].summary["k"],
            "exact": exact,
            **_ends(members, exact),
            "lowest_pass@1": min(
                value for run in members for _, value in run.path("pass@1", exact)
            ),
            "above_mix": distance,
            "above_mix_exact": distance_exact,
            "seconds": fmean([run.summary["seconds"] for run in members]),
            "difficulty": _difficulty(members),
        }
        if known:  # the task computes it
            shares = [run.summary["exact"]["frontier_share"] for run in members]
            row["frontier_share"] = None if None in shares else fmean(shares)
        rows.append(row)
    for metric in dict.fromkeys(name for x in estimates for name in x):
        _judge(rows, estimates, metric, margin)
    return rows


def drawn_alike(rows: Sequence[Row], groups: Mapping[str, Sequence[Run]]) -> list[Row]:
    """Return rows for pictures, where all values must be of one kind.

    These are exact values if all runs have them, and some row of the table too; else sampled ones.
    """
    exact = all(_known(members) for members in groups.values()) and any(x["exact"] for x in rows)
    return [
        row if row["exact"] == exact else row | {"exact": exact} | _ends(groups[row["run"]], exact)
        for row in rows
    ]


def _ends(runs: Sequence[Run], exact: bool) -> dict[str, Any]:
    return {metric: _scores(runs, metric, exact) for metric in runs[0].summary["before"]}


def _known(runs: Sequence[Run]) -> bool:
    return all(run.exact for run in runs)


def _distance(
    runs: Sequence[Run], true: Sequence[Curve], sampled: Sequence[Curve]
) -> tuple[Interval | None, bool]:
    """Return the distance to the curve of exact values, if it has an interval, else to the other.

    The second value says whether it is the first of these.
    """
    exact = above(runs, true, True) if true else None
    if exact is not None and exact["low"] is not None:
        return exact, True
    return above(runs, sampled, False), False


def _estimate(runs: Sequence[Run], metric: str, exact: bool) -> Estimate:
    """Return the change of a metric with its interval.

    The interval of true values is over seeds. That of sampled values is over problems and, if there
    are several, seeds.
    """
    changes = [
        run.value("after", metric, exact) - run.value("before", metric, exact) for run in runs
    ]
    if exact:
        return student(changes)
    k = int(metric.removeprefix("pass@"))
    if len(runs) == 1:
        return change(runs[0].records("before"), runs[0].records("after"), k)
    by_problem = [
        problem_scores(run.records("after"), k) - problem_scores(run.records("before"), k)
        for run in runs
    ]
    return seeds_and_problems(torch.stack(by_problem))


def _scores(runs: Sequence[Run], metric: str, exact: bool) -> dict[str, Any]:
    before, after = (
        student([run.value(when, metric, exact) for run in runs]).interval
        for when in ("before", "after")
    )
    if len(runs) == 1 and not exact:
        after = runs[0].summary["after"][metric]
    few = not exact and any(metric in run.summary.get("too_few", ()) for run in runs)
    return {"before": before["value"], "after": after, "too_few": few}


def _judge(
    rows: Sequence[Row], estimates: Sequence[Mapping[str, Estimate]], metric: str, margin: float
) -> None:
    """Add change, p-values and verdict of one metric to all rows that have it."""
    judged = [(row, x[metric]) for row, x in zip(rows, estimates, strict=True) if metric in x]
    for row, estimate in judged:
        cell = row[metric]
        cell |= {"change": estimate.interval, "p": estimate.p_value(margin), "p_holm": None}
        cell["verdict"] = moved(estimate.interval, margin)
    family = [(row[metric], estimate) for row, estimate in judged if row["seeds"] > 1]
    adjusted = holm([cell["p"] for cell, _ in family])
    for (cell, estimate), p in zip(family, adjusted, strict=True):
        cell |= {"p_holm": p, "verdict": word(estimate, p)}


def word(estimate: Estimate, p: float) -> str:
    if p >= 1 - LEVEL:
        return CANNOT_TELL
    return "better" if estimate.interval["value"] > 0 else "worse"


def _difficulty(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return problems gained and lost by difficulty: means over seeds, p for one seed only."""
    tables = [by_difficulty(run.records("before"), run.records("after")) for run in runs]
    rows = []
    for level in dict.fromkeys(x["difficulty"] for part in tables for x in part):
        same = [x for part in tables for x in part if x["difficulty"] == level]
        numbers = ("problems", "before", "after", "gained", "lost")
        means = {name: fmean([x[name] for x in same]) for name in numbers}
        p = same[0]["p"] if len(runs) == 1 else None
        rows.append({"difficulty": level, **means, "p": p})
    return rows


def header(k: int) -> list[str]:
    columns = ["run", "seeds"]
    for metric in dict.fromkeys(("pass@1", f"pass@{k}")):
        columns += [metric, "change", "verdict"]
    return [*columns, "above mix", "lowest pass@1", "frontier share", "seconds"]


def cells(row: Row) -> list[str]:
    seeds = "one seed" if row["seeds"] == 1 else str(row["seeds"])
    texts = [row["run"], seeds if row["exact"] else f"{seeds}, sampled"]
    for metric in dict.fromkeys(("pass@1", f"pass@{row['k']}")):
        x = row[metric]
        texts.append(f"{x['before']:.3f} → {x['after']['value']:.3f}")
        texts += [spread(x["change"], "+", x["too_few"]), x["verdict"]]
    distance, share = row["above_mix"], row.get("frontier_share")
    kind = " sampled" if row["exact"] and not row["above_mix_exact"] else ""
    kind = " exact" if row["above_mix_exact"] and not row["exact"] else kind
    texts.append(NONE if distance is None else spread(distance, "+") + kind)
    lowest = f"{row['lowest_pass@1']:.3f} {'exact' if row['exact'] else 'sampled'}"
    texts += [lowest, number(share, ".2f")]
    return [*texts, f"{row['seconds']:.0f}"]


def render(rows: Sequence[Row], markdown: bool = False, width: int | None = None) -> str:
    """Return a table for each k, for a terminal of a width or as markdown.

    For the terminal it has no empty columns, and the seconds only if there is room.
    """
    tables = []
    for k in dict.fromkeys(row["k"] for row in rows):
        top, lines = header(k), [cells(row) for row in rows if row["k"] == k]
        if markdown:
            tables.append(markdown_table(top, lines, aligned=False))
            continue
        empty = [name for i, name in enumerate(top) if all(line[i] == NONE for line in lines)]
        text = table(*without(empty, top, lines))
        if width and max(map(len, text.splitlines())) > width:
            text = table(*without([*empty, "seconds"], top, lines))
        tables.append(text)
    return "\n\n".join(tables)


def as_csv(rows: Sequence[Row]) -> str:
    """Return the rows as CSV, one column per number; missing numbers are empty."""
    flat = [dict(leaves({k: x for k, x in row.items() if k != "difficulty"})) for row in rows]
    out = io.StringIO()
    writer = csv.DictWriter(out, list(dict.fromkeys(k for row in flat for k in row)))
    writer.writeheader()
    writer.writerows(flat)
    return out.getvalue()
