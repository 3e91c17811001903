"""Tables for the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from eval.passk import verdict


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns padded to their widest cell; the first is flush left, the others flush right."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        first, *rest = (
            cell.ljust(w) if i == 0 else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(cells, widths, strict=True))
        )
        return "  ".join([first, *rest]).rstrip()

    return "\n".join([line(header), "  ".join("-" * w for w in widths), *map(line, rows)])


def spread(x: Mapping[str, Any], sign: str = "") -> str:
    """The value with its interval, where it has one."""
    ends = "" if x["low"] is None else f" [{x['low']:{sign}.3f}, {x['high']:{sign}.3f}]"
    return f"{x['value']:{sign}.3f}{ends}"


def run_table(summary: Mapping[str, Any]) -> str:
    """What the run did: before, after and change of each pass@k, the exact values where known, and
    a verdict.
    """
    exact = summary.get("exact")
    header = ["", "before", "after", "change"]
    rows = []
    for name, change in summary["change"].items():
        rows.append(
            [
                name,
                spread(summary["before"][name]),
                spread(summary["after"][name]),
                spread(change, "+"),
            ]
        )
    if exact:
        for name in summary["change"]:
            before, after = exact["before"][name], exact["after"][name]
            rows.append(
                [f"{name} exact", f"{before:.3f}", f"{after:.3f}", f"{after - before:+.3f}"]
            )
    lines = [
        table(header, rows),
        "",
        f"{summary['run']}, seed {summary['seed']}: {verdict(summary['change'])}.",
    ]
    if exact:
        share = exact["frontier_share"]
        lines.append(
            f"Lowest exact pass@1 on the way: {exact['lowest_pass@1']:.3f}. Frontier share: "
            + ("– (a value fell)." if share is None else f"{share:.2f}.")
        )
    return "\n".join(lines)
