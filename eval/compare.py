"""Runs side by side: grouped over seeds, with Student-t intervals of their paired changes."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.passk import Interval
from eval.report import spread, table

# two-sided 95 % quantiles of Student's t for 1, 2, ... degrees of freedom (printed tables)
T_95 = [
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
]


def t_interval(values: Sequence[float]) -> Interval:
    """Mean over seeds with its 95 % Student-t interval; a single seed has none."""
    n = len(values)
    mean = math.fsum(values) / n
    if n == 1:
        return {"value": mean, "low": None, "high": None}
    deviation = math.sqrt(math.fsum((x - mean) ** 2 for x in values) / (n - 1))
    half = T_95[min(n - 1, len(T_95)) - 1] * deviation / math.sqrt(n)
    return {"value": mean, "low": mean - half, "high": mean + half}


def find_summaries(folders: Iterable[Path]) -> list[dict[str, Any]]:
    """The summary of every finished run at or below the folders, with the `group` that it is of.

    Runs are of one group if they lie side by side, as seed0, seed1, ... do.
    """
    paths = sorted({path.resolve() for x in folders for path in x.rglob("summary.json")})
    found = [(path, json.loads(path.read_text())) for path in paths]
    groups = {(str(path.parent.parent), x["run"]) for path, x in found}
    twice = [name for name, n in Counter(run for _, run in groups).items() if n > 1]
    return [
        x | {"group": str(path.parent.parent) if x["run"] in twice else x["run"]}
        for path, x in found
    ]


def compare(summaries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row a group: means over seeds, by the exact values where all its runs have them."""
    rows = []
    for name in dict.fromkeys(x["group"] for x in summaries):
        runs = [x for x in summaries if x["group"] == name]
        k = f"pass@{runs[0]['k']}"
        exact = all(x.get("exact") for x in runs)
        row: dict[str, Any] = {"run": name, "seeds": len(runs), "k": runs[0]["k"], "exact": exact}
        for metric in dict.fromkeys(("pass@1", k)):
            pairs = [_before_after(x, metric, exact) for x in runs]
            row[metric] = {
                "before": math.fsum(a for a, _ in pairs) / len(pairs),
                "after": math.fsum(b for _, b in pairs) / len(pairs),
                "change": t_interval([b - a for a, b in pairs]),
            }
        if exact:
            shares = [x["exact"]["frontier_share"] for x in runs]
            row["lowest_pass@1"] = min(x["exact"]["lowest_pass@1"] for x in runs)
            row["frontier_share"] = None if None in shares else math.fsum(shares) / len(shares)
        row["seconds"] = math.fsum(x["seconds"] for x in runs) / len(runs)
        rows.append(row)
    return rows


def _before_after(run: Mapping[str, Any], metric: str, exact: bool) -> tuple[float, float]:
    if exact:
        return run["exact"]["before"][metric], run["exact"]["after"][metric]
    return run["before"][metric]["value"], run["after"][metric]["value"]


def _cells(row: Mapping[str, Any]) -> list[str]:
    cells = [row["run"], str(row["seeds"])]
    for metric in dict.fromkeys(("pass@1", f"pass@{row['k']}")):
        cells += [f"{row[metric]['after']:.3f}", spread(row[metric]["change"], "+")]
    share, lowest = row.get("frontier_share"), row.get("lowest_pass@1")
    cells += ["–" if x is None else f"{x:{form}}" for x, form in ((lowest, ".3f"), (share, ".2f"))]
    return [*cells, f"{row['seconds']:.0f}"]


def render(rows: Sequence[Mapping[str, Any]], markdown: bool = False) -> str:
    """A table for each k, for the terminal or as markdown. Changes are means over seeds."""
    tables = []
    for k in dict.fromkeys(row["k"] for row in rows):
        header = ["run", "seeds"]
        for metric in dict.fromkeys(("pass@1", f"pass@{k}")):
            header += [metric, "change"]
        header += ["lowest pass@1", "frontier share", "seconds"]
        cells = [_cells(row) for row in rows if row["k"] == k]
        if markdown:
            lines = [header, ["---"] * len(header), *cells]
            tables.append("\n".join("| " + " | ".join(line) + " |" for line in lines))
        else:
            tables.append(table(header, cells))
    return "\n\n".join(tables)
