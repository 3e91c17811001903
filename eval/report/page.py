"""Everything that a comparison of runs leaves behind: tables, pictures, one HTML page."""

import difflib
import io
from collections.abc import Sequence
from pathlib import Path

from eval.files import replace_text, write_json
from eval.report import html
from eval.report.compare import Row, as_csv, cells, compare, header, notes, render
from eval.report.curve import curves
from eval.report.runs import BadRuns, Run, grouped
from eval.report.tables import difficulty_cells


def write(runs: Sequence[Run], out: Path, margin: float, scalars: Sequence[str] = ()) -> list[Row]:
    """compare.md, .csv, .json, .html and the pictures, in `out`, with one of the `scalars` over
    training. Returns the rows.
    """
    rows = compare(runs, margin)
    _check(scalars, runs)
    out.mkdir(parents=True, exist_ok=True)
    replace_text(
        out / "compare.md", "\n".join([render(rows, markdown=True), "", *notes(rows, margin)])
    )
    replace_text(out / "compare.csv", as_csv(rows))
    write_json(out / "compare.json", rows)
    parts = [html.grid(header(k), [cells(r) for r in rows if r["k"] == k]) for k in _ks(rows)]
    parts += [html.paragraph(note) for note in notes(rows, margin)]
    for name, title, caption, png in [*_pictures(rows, runs), *_curves(scalars, runs)]:
        (out / f"{name}.png").write_bytes(png)
        parts += [html.heading(title), html.picture(png, caption)]
    parts += [html.heading("Problems gained and lost")]
    parts += [html.paragraph(GAINED)]
    parts += [html.grid(*difficulty_cells(rows))]
    parts += [html.heading("Settings")]
    for name, members in grouped(runs).items():
        settings = [[key, str(x)] for key, x in members[0].config.items()]
        parts.append(html.details(name, html.grid(["key", "value"], settings)))
    replace_text(out / "compare.html", html.page("Runs side by side", parts))
    return rows


GAINED = (
    "A problem counts as solved if more than half of its answers are right. Easy, medium, hard:"
    " above 0.80, between, below 0.15 for the base; where the true rate is not known, one half of"
    " the base's answers says how hard a problem was, and the other half is what the change is held"
    " against. Numbers are means over seeds; p is McNemar's exact one, for a single seed."
)


def _ks(rows: Sequence[Row]) -> list[int]:
    return list(dict.fromkeys(row["k"] for row in rows))


def _pictures(rows: Sequence[Row], runs: Sequence[Run]) -> list[tuple[str, str, str, bytes]]:
    """(file, title, caption, PNG) of every picture, the planes for each k."""
    from eval.report import pictures

    found = []
    for k in _ks(rows):
        part = [row for row in rows if row["k"] == k]
        groups = {name: x for name, x in grouped(runs).items() if name in {r["run"] for r in part}}
        end = "" if len(_ks(rows)) == 1 else f"_k{k}"
        mixed = curves(list(groups.values()), rows[0]["exact"])
        if k > 1:
            caption = (
                "Thin lines: the path of every run. Bars: 95 % Student-t over seeds. Numbers on the"
                " curve of fixed mixtures: their lambda."
            )
            figure = pictures.pareto(part, groups, mixed, k)
            found.append((f"pareto{end}", f"pass@{k} against pass@1", caption, _png(figure)))
        steps = pictures.over_steps(part, groups, k)
        caption = "Means over seeds, with the range of the seeds; dotted: the base."
        found.append((f"steps{end}", "Over training", caption, _png(steps)))
        caption = "Before and after training; means over seeds."
        found.append((f"passk{end}", "pass@k against k", caption, _png(pictures.against_k(part))))
        caption = (
            "Problems by success rate before (left) and after (right): easy above 0.80, hard below"
            " 0.15; by true rates where they are known, else by sampled ones, which move a little"
            " by chance alone."
        )
        found.append((f"flows{end}", "Where problems went", caption, _png(pictures.flows(groups))))
    return found


def _check(scalars: Sequence[str], runs: Sequence[Run]) -> None:
    for name in scalars:
        if not any(run.scalar(name) for run in runs):
            known = sorted({key for run in runs for line in run.history for key in line})
            near = difflib.get_close_matches(name, known, 1, 0.0)
            raise BadRuns(f"--curves = {name}: in no run's metrics.jsonl; the nearest is {near[0]}")


def _curves(scalars: Sequence[str], runs: Sequence[Run]) -> list[tuple[str, str, str, bytes]]:
    from eval.report import pictures

    if not scalars:
        return []
    caption = "Means over seeds, with the range of the seeds."
    figure = pictures.of_scalars(scalars, grouped(runs))
    return [("curves", ", ".join(scalars), caption, _png(figure))]


def _png(figure) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=130)
    return out.getvalue()
