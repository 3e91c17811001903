"""The output of a comparison of runs: tables, pictures, one HTML page."""

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure

from eval.files import replace_text, write_json
from eval.report import html, pictures
from eval.report.bases import MOST
from eval.report.compare import Row, as_csv, cells, compare, drawn_alike, header, render
from eval.report.curve import curves
from eval.report.labels import NOT_COMPARED, differing, shown
from eval.report.notes import notes
from eval.report.pictures import Groups
from eval.report.plots import png
from eval.report.runs import BadRuns, Run, grouped
from eval.report.tables import HALVES, difficulty_cells


def write(runs: Sequence[Run], out: Path, margin: float, scalars: Sequence[str] = ()) -> list[Row]:
    """Write compare.md, .csv, .json, .html and all pictures into `out`; return the rows.

    A further picture shows the `scalars` over training.
    """
    rows = compare(runs, margin)
    _check(scalars, runs)
    out.mkdir(parents=True, exist_ok=True)
    replace_text(out / "compare.csv", as_csv(rows))
    write_json(out / "compare.json", rows)
    groups = grouped(runs)
    sentences = notes(rows, groups, margin)
    lines = [render(rows, markdown=True), *sentences]
    replace_text(out / "compare.md", "\n\n".join(lines) + "\n")
    parts = [html.grid(header(k), [cells(r) for r in rows if r["k"] == k]) for k in _ks(rows)]
    parts += [html.paragraph(sentence) for sentence in sentences]
    parts += _settings(groups)
    drawn = drawn_alike(rows, groups)
    for picture in [*_pictures(drawn, groups), *_curves(scalars, groups, drawn[0]["exact"])]:
        image = png(picture.figure, dpi=130)
        (out / f"{picture.name}.png").write_bytes(image)
        parts += [html.heading(picture.title), html.picture(image, picture.caption)]
    parts += [html.heading("Problems gained and lost"), html.paragraph(GAINED)]
    parts.append(html.grid(*difficulty_cells(rows)))
    replace_text(out / "compare.html", html.page("Runs side by side", parts))
    return rows


def _settings(groups: Groups) -> list[str]:
    """Return a table of the settings that differ between the runs, and one of those that do not."""
    header, rows = differences(groups)
    config = next(iter(groups.values()))[0].config
    same = [[key, shown(x)] for key, x in config.items() if not key.startswith(NOT_COMPARED)]
    same = [row for row in same if row[0] not in header]
    return [
        html.heading("Settings that differ"),
        html.paragraph("A rule reads its own settings only; the others have no effect on it."),
        html.grid(header, rows),
        html.details("Settings that all runs share", html.grid(["key", "value"], same)),
    ]


def differences(groups: Groups) -> tuple[list[str], list[list[str]]]:
    """Return header and lines of the settings that differ, with the folder of each run."""
    keys = differing([runs[0].config for runs in groups.values()])
    rows = []
    for name, runs in groups.items():
        values = [shown(runs[0].config.get(key)) for key in keys]
        rows.append([name, *values, str(runs[0].place)])
    return ["run", *keys, "folder"], rows


GAINED = (
    f"A problem counts as solved if more than half of its answers are right. {HALVES} Numbers are"
    " means over seeds; p is McNemar's exact p-value, for a single seed."
)


def _ks(rows: Sequence[Row]) -> list[int]:
    return list(dict.fromkeys(row["k"] for row in rows))


class Picture(NamedTuple):
    name: str  # file name without its suffix
    title: str
    caption: str
    figure: Figure


def _pictures(rows: Sequence[Row], groups: Groups) -> Iterator[Picture]:
    """Yield all pictures of the rows, one k after the other."""
    ks = _ks(rows)
    for k in ks:
        part = [row for row in rows if row["k"] == k]
        for picture in _pictures_of(part, {row["run"]: groups[row["run"]] for row in part}, k):
            yield picture if len(ks) == 1 else picture._replace(name=f"{picture.name}_k{k}")


def _pictures_of(rows: Sequence[Row], groups: Groups, k: int) -> Iterator[Picture]:
    mixed = curves(list(groups.values()), rows[0]["exact"])
    look = pictures.looks(groups, mixed)
    if k > 1:
        figure = pictures.pareto(rows, groups, mixed, k)
        yield Picture("pareto", f"pass@{k} against pass@1", PLANE, figure)
    caption = f"Means over seeds; bands: the range of the seeds; dotted: the base. {FEW}"
    yield Picture("steps", "Over training", caption, pictures.over_steps(rows, groups, look, k))
    caption = f"Before and after training; means over seeds. {FEW}"
    yield Picture("passk", "pass@k against k", caption, pictures.against_k(rows, groups, look, k))
    caption = (
        "Problems by success rate before (left) and after (right): easy above 0.80, hard below"
        " 0.15; by true rates where they are known, else by sampled ones, which move a little"
        " by chance alone."
    )
    yield Picture("flows", "Where problems went", caption, pictures.flows(groups))


FEW = (
    "All values are exact if all runs know them and some have several seeds; else all are sampled."
    f" No base is shown if there are more than {MOST}."
)
PLANE = (
    "Marks: the runs' ends, means over seeds with 95 % Student-t intervals (one seed: over problems"
    " if the values are sampled, else none). Thin lines: the mean path over seeds, if there are at"
    f" most {pictures.MOST_PATHS} runs beside the mixtures. Thick line: the ends of the fixed"
    f" mixtures, over lambda. Star: the base. {FEW}"
)


def _check(scalars: Sequence[str], runs: Sequence[Run]) -> None:
    for name in scalars:
        if not any(run.scalar(name) for run in runs):
            known = sorted({key for run in runs for line in run.history for key in line})
            near = difflib.get_close_matches(name, known, 1, 0.0)
            raise BadRuns(f"--curves = {name}: in no run's metrics.jsonl; the nearest is {near[0]}")


def _curves(scalars: Sequence[str], groups: Groups, exact: bool) -> Iterator[Picture]:
    if scalars:
        look = pictures.looks(groups, curves(list(groups.values()), exact))
        figure = pictures.of_scalars(scalars, groups, look)
        caption = "Means over seeds, with the range of the seeds."
        yield Picture("curves", ", ".join(scalars), caption, figure)
