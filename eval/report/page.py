"""The output of a comparison of runs: tables, pictures, one HTML page."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure

from eval.files import replace_text, write_json
from eval.report import html, pictures
from eval.report.compare import Row, as_csv, cells, compare, header, notes, render
from eval.report.curve import curves
from eval.report.plots import png
from eval.report.runs import BadRuns, Run, grouped
from eval.report.tables import difficulty_cells


def write(runs: Sequence[Run], out: Path, margin: float, scalars: Sequence[str] = ()) -> list[Row]:
    """Write compare.md, .csv, .json, .html and all pictures into `out`; return the rows.

    A further picture shows the `scalars` over training.
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
    for picture in [*_pictures(rows, runs), *_curves(scalars, runs)]:
        image = png(picture.figure, dpi=130)
        (out / f"{picture.name}.png").write_bytes(image)
        parts += [html.heading(picture.title), html.picture(image, picture.caption)]
    parts += [html.heading("Problems gained and lost"), html.paragraph(GAINED)]
    parts += [html.grid(*difficulty_cells(rows)), html.heading("Settings")]
    for name, members in grouped(runs).items():
        settings = [[key, str(x)] for key, x in members[0].config.items()]
        parts.append(html.details(name, html.grid(["key", "value"], settings)))
    replace_text(out / "compare.html", html.page("Runs side by side", parts))
    return rows


GAINED = (
    "A problem counts as solved if more than half of its answers are right. Easy, medium, hard:"
    " above 0.80, between, below 0.15 for the base. If the true rate is not known, one half of the"
    " base's answers gives the difficulty of a problem, and the change is measured against the"
    " other half. Numbers are means over seeds; p is McNemar's exact p-value, for a single seed."
)


def _ks(rows: Sequence[Row]) -> list[int]:
    return list(dict.fromkeys(row["k"] for row in rows))


class Picture(NamedTuple):
    name: str  # file name without its suffix
    title: str
    caption: str
    figure: Figure


def _pictures(rows: Sequence[Row], runs: Sequence[Run]) -> Iterator[Picture]:
    """Yield all pictures of the rows, one k after the other."""
    ks = _ks(rows)
    for k in ks:
        part = [row for row in rows if row["k"] == k]
        groups = {name: x for name, x in grouped(runs).items() if name in {r["run"] for r in part}}
        for picture in _pictures_of(part, groups, k):
            yield picture if len(ks) == 1 else picture._replace(name=f"{picture.name}_k{k}")


def _pictures_of(rows: Sequence[Row], groups: Mapping[str, list[Run]], k: int) -> Iterator[Picture]:
    if k > 1:
        caption = (
            "Thin lines: the path of every run. Bars: 95 % Student-t over seeds. Numbers on the"
            " curve of fixed mixtures: their lambda."
        )
        mixed = curves(list(groups.values()), rows[0]["exact"])
        figure = pictures.pareto(rows, groups, mixed, k)
        yield Picture("pareto", f"pass@{k} against pass@1", caption, figure)
    caption = "Means over seeds, with the range of the seeds; dotted: the base."
    yield Picture("steps", "Over training", caption, pictures.over_steps(rows, groups, k))
    caption = "Before and after training; means over seeds."
    yield Picture("passk", "pass@k against k", caption, pictures.against_k(rows))
    caption = (
        "Problems by success rate before (left) and after (right): easy above 0.80, hard below"
        " 0.15; by true rates where they are known, else by sampled ones, which move a little"
        " by chance alone."
    )
    yield Picture("flows", "Where problems went", caption, pictures.flows(groups))


def _check(scalars: Sequence[str], runs: Sequence[Run]) -> None:
    for name in scalars:
        if not any(run.scalar(name) for run in runs):
            known = sorted({key for run in runs for line in run.history for key in line})
            near = difflib.get_close_matches(name, known, 1, 0.0)
            raise BadRuns(f"--curves = {name}: in no run's metrics.jsonl; the nearest is {near[0]}")


def _curves(scalars: Sequence[str], runs: Sequence[Run]) -> Iterator[Picture]:
    if scalars:
        figure = pictures.of_scalars(scalars, grouped(runs))
        caption = "Means over seeds, with the range of the seeds."
        yield Picture("curves", ", ".join(scalars), caption, figure)
