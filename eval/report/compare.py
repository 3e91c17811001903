"""A comparison of runs: one row per group of seeds, with intervals and verdicts."""

import csv
import io
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import torch

from eval.files import leaves
from eval.report.curve import above, curves
from eval.report.runs import Run, grouped
from eval.report.tables import NONE, STAR, TOO_FEW, markdown_table, number, spread, table
from eval.scores.difficulty import by_difficulty
from eval.scores.intervals import LEVEL, Estimate, holm, seeds_and_problems, student
from eval.scores.passk import CANNOT_TELL, change, moved, problem_scores

Row = dict[str, Any]


def compare(runs: Sequence[Run], margin: float = 0.0) -> list[Row]:
    """Return one row per group, with exact values if all runs have them and no group is one seed.

    A single seed has no spread over seeds: its interval is over problems, of sampled values, and
    its verdict that of the run itself. Over several seeds the hypothesis is that the change lies
    within the margin. If Holm's p over all rows is below 0.05, the verdict is better or worse; else
    it is "cannot tell".
    """
    groups = grouped(runs)
    known = all(run.exact for run in runs)
    exact = known and all(len(members) > 1 for members in groups.values())
    mixtures = curves(list(groups.values()), exact)
    rows, estimates = [], []
    for name, members in groups.items():
        metrics = list(dict.fromkeys(("pass@1", members[0].k)))
        estimates.append({metric: _estimate(members, metric, exact) for metric in metrics})
        distance = above(members, mixtures, exact)
        row: Row = {
            "run": name,
            "folder": str(members[0].place),
            "seeds": len(members),
            "k": members[0].summary["k"],
            "exact": exact,
            **{metric: _scores(members, metric, exact) for metric in members[0].summary["before"]},
            "lowest_pass@1": min(
                value for run in members for _, value in run.path("pass@1", exact)
            ),
            "above_mix": distance,
            "seconds": fmean([run.summary["seconds"] for run in members]),
            "difficulty": _difficulty(members),
        }
        if known:
            shares = [run.summary["exact"]["frontier_share"] for run in members]
            row["frontier_share"] = None if None in shares else fmean(shares)
        rows.append(row)
    for metric in dict.fromkeys(name for x in estimates for name in x):
        _judge(rows, estimates, metric, margin)
    return rows


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
    family = [(row, x[metric]) for row, x in zip(rows, estimates, strict=True) if metric in x]
    adjusted = holm([x.p_value(margin) for _, x in family])
    for (row, estimate), p in zip(family, adjusted, strict=True):
        cell, one = row[metric], row["seeds"] == 1
        cell["change"] = estimate.interval
        cell |= {"p": estimate.p_value(margin), "p_holm": p}
        cell["verdict"] = moved(estimate.interval, margin) if one else word(estimate, p)


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
    texts = [row["run"], "one seed" if row["seeds"] == 1 else str(row["seeds"])]
    for metric in dict.fromkeys(("pass@1", f"pass@{row['k']}")):
        x = row[metric]
        texts.append(f"{x['before']:.3f} → {x['after']['value']:.3f}")
        texts += [spread(x["change"], "+", x["too_few"]), x["verdict"]]
    distance, share = row["above_mix"], row.get("frontier_share")
    texts.append(NONE if distance is None else spread(distance, "+"))
    texts += [f"{row['lowest_pass@1']:.3f}", number(share, ".2f")]
    return [*texts, f"{row['seconds']:.0f}"]


def render(rows: Sequence[Row], markdown: bool = False) -> str:
    """Return a table for each k, for the terminal or as markdown."""
    tables = []
    for k in dict.fromkeys(row["k"] for row in rows):
        lines = [cells(row) for row in rows if row["k"] == k]
        if markdown:
            tables.append(markdown_table(header(k), lines, aligned=False))
        else:
            tables.append(table(header(k), lines))
    return "\n\n".join(tables)


def as_csv(rows: Sequence[Row]) -> str:
    """Return the rows as CSV, one column per number; missing numbers are empty."""
    flat = [dict(leaves({k: x for k, x in row.items() if k != "difficulty"})) for row in rows]
    out = io.StringIO()
    writer = csv.DictWriter(out, list(dict.fromkeys(k for row in flat for k in row)))
    writer.writeheader()
    writer.writerows(flat)
    return out.getvalue()


def notes(rows: Sequence[Row], margin: float) -> list[str]:
    """Return sentences that explain the table."""
    values = "True values" if rows[0]["exact"] else "Sampled values"
    one, several = (any((row["seeds"] == 1) == x for row in rows) for x in (True, False))
    lines = []
    if several:
        lines += [
            f"{values}; means over seeds. Changes are paired, with Student-t 95 % intervals over"
            " seeds (sampled: over seeds and problems).",
            f"Better, worse: the change lies beyond ±{margin:g} with p < 0.05, Holm-adjusted over"
            " all rows.",
        ]
    if one:
        lines.append(
            "One seed: sampled values, with the run's own 95 % interval over problems (BCa"
            f" bootstrap). Rose, fell: that interval lies beyond ±{margin:g}, as the run itself"
            " says at its end. Another seed may end elsewhere."
        )
    if any(row["above_mix"] for row in rows):
        lines.append(
            "Above mix: pass@k minus that of the fixed mixtures' curve at the same pass@1"
            " (level beyond its ends), 95 % intervals over seeds (true values: jackknife; sampled:"
            " bootstrap over seeds and problems; one seed: over problems)."
        )
    if STAR in render(rows):
        lines.append(TOO_FEW)
    return lines
