"""Tables for the terminal and as markdown, and the texts of a run and of scores."""

import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from eval.scores.intervals import Interval
from eval.scores.passk import verdict


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table for the terminal, the first column flush left, the others flush right.

    Cells may contain names from data: characters that cannot be printed become spaces, so that each
    cell stays in its line.
    """
    header, *rows = ([_printable(cell) for cell in row] for row in [header, *rows])
    widths = _widths([header, *rows])

    def line(cells: Sequence[str]) -> str:
        first, *rest = (
            cell.ljust(w) if i == 0 else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(cells, widths, strict=True))
        )
        return "  ".join([first, *rest]).rstrip()

    return "\n".join([line(header), "  ".join("-" * w for w in widths), *map(line, rows)])


def markdown_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], aligned: bool = True
) -> str:
    """Return a table as markdown; `aligned` gives all cells of a column the same width."""
    widths = _widths([header, *rows]) if aligned else [0] * len(header)
    rule = ["-" * (width if aligned else 3) for width in widths]
    padded = [
        [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        for row in [header, rule, *rows]
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in padded)


def without(
    names: Sequence[str], header: Sequence[str], rows: Sequence[Sequence[str]]
) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of a table without the columns of these names."""
    kept = [i for i, name in enumerate(header) if name not in names]
    return [header[i] for i in kept], [[row[i] for i in kept] for row in rows]


def terminal_width() -> int | None:
    """Return the width of the terminal; None if the output goes elsewhere."""
    return shutil.get_terminal_size((0, 0)).columns or None


def _widths(rows: Sequence[Sequence[str]]) -> list[int]:
    return [max(map(len, column)) for column in zip(*rows, strict=True)]


def _printable(text: str) -> str:
    return "".join(x if x.isprintable() else " " for x in text)


NONE = "–"  # a missing number
STAR = "*"
TOO_FEW = (
    "* Too few: fewer than five problems hold all the right answers, or all the wrong ones, so that"
    " the interval is unreliable."
)
HALVES = (
    "Easy, medium, hard: above 0.80, between, below 0.15 for the base. If the true rate is not"
    " known, one half of the base's answers gives the difficulty of a problem, and the change is"
    " measured against the other half, so that the rows need not add up."
)


def number(x: float | None, form: str) -> str:
    return NONE if x is None else f"{x:{form}}"


def spread(x: Interval, sign: str = "", too_few: bool = False, form: str = ".3f") -> str:
    """Return the value with its interval, if it has one, and a star for too few problems."""
    form = f"{sign}{form}"
    ends = "" if x["low"] is None else f" [{x['low']:{form}}, {x['high']:{form}}]"
    return f"{x['value']:{form}}{ends}{STAR if too_few else ''}"


def run_table(summary: Mapping[str, Any]) -> str:
    """Return a run's results: each pass@k before and after, its change, and a verdict.

    Exact values follow if they are known.
    """
    exact = summary.get("exact")
    header = ["", "before", "after", "change"]
    rows = []
    for name, change in summary["change"].items():
        few = name in summary.get("too_few", ())
        cells = [spread(summary[when][name]) for when in ("before", "after")]
        rows.append([name, *cells, spread(change, "+", few)])
    if exact:
        for name in summary["change"]:
            before, after = exact["before"][name], exact["after"][name]
            rows.append(
                [f"{name} exact", f"{before:.3f}", f"{after:.3f}", f"{after - before:+.3f}"]
            )
    lines = [
        table(header, rows),
        "",
        f"{summary['run']}, seed {summary['seed']}: {outcome(summary)}.",
    ]
    if summary.get("difficulty"):
        parts, rows = difficulty_cells([summary])
        lines[1:1] = ["", table(parts[1:], [row[1:] for row in rows]), *([] if exact else [HALVES])]
    if exact:
        share = exact["frontier_share"]
        lines.append(
            f"Lowest exact pass@1 on the way: {exact['lowest_pass@1']:.3f}. Frontier share: "
            + ("– (a value fell)." if share is None else f"{share:.2f}.")
        )
    return _explained("\n".join(lines))


def outcome(summary: Mapping[str, Any]) -> str:
    """Return which values rose or fell, their exact changes, and where the words come from."""
    exact, difficulty = summary.get("exact"), summary.get("difficulty")
    known = exact and {x: exact["after"][x] - exact["before"][x] for x in summary["change"]}
    problems = f" to {difficulty[0]['problems']} problems" if difficulty else ""  # of all levels
    return f"{verdict(summary['change'], known)}, from the sampled answers{problems}"


def score_report(summary: Mapping[str, Any]) -> str:
    """Return settings, scores and slices of one model or one file of generations."""
    expected, n = summary.get("expected"), summary["n"]
    rows = []
    for (name, passed), voted in zip(
        summary["scores"].items(), summary["majority"].values(), strict=True
    ):
        known = [f"{expected[name]:.3f}"] if expected else []
        score = spread(passed, too_few=name in summary["too_few"])
        rows.append([name.removeprefix("pass@"), score, *known, spread(voted)])
    header = ["k", "pass@k", *(["expected"] if expected else []), "maj@k"]
    lines = [_how(summary), "", table(header, rows), ""]
    error = summary["standard_error"]
    facts = [
        *([] if error is None else [f"pass@1 has a standard error of {error:.3f} over problems"]),
        f"{summary['distinct']:.1f} distinct answers per problem",
        f"{summary['length']:.1f} {_unit(summary)} per answer",
        f"{_share(summary['truncated_share'])} truncated",
        f"{_share(summary['undecided_share'])} undecided verdicts",
    ]
    lines.append("; ".join(facts) + ".")
    if summary["most_n"] != n:
        lines.append(f"Problems have from {n} to {summary['most_n']} answers: k ends at {n}.")
    if expected:
        lines.append("Expected: pass@k of these problems by their true success rates.")
    if summary["slices"]:
        lines += ["", _slice_table(summary["slices"])]
    return _explained("\n".join(lines))


def _explained(text: str) -> str:
    return f"{text}\n\n{TOO_FEW}" if STAR in text else text


def _how(summary: Mapping[str, Any], swept: bool = False) -> str:
    """Return model, problems and decoding; a sweep omits the settings that its lines show."""
    settings = summary["settings"]
    name = settings["model"] if swept else summary["label"]
    parts = [f"{name}: {summary['problems']} problems", f"n = {summary['n']}"]
    if "temperature" in settings:
        parts += [
            *([] if swept and "T " in summary["label"] else [f"T = {settings['temperature']:g}"]),
            f"top-p {settings['top_p']:g}",
            f"at most {settings['max_new_tokens']} tokens",
            f"seed {settings['seed']}",
        ]
    return ", ".join([*parts, f"verifier {settings['verifier']}"])


def _unit(summary: Mapping[str, Any]) -> str:
    return "tokens" if "temperature" in summary["settings"] else "characters"


def _share(x: float | None) -> str:
    return "unknown share" if x is None else f"{100 * x:.1f} %"


def _slice_table(slices: Sequence[Mapping[str, Any]]) -> str:
    names = [name for name in slices[0] if "@" in name]
    rows = [
        [
            part["slice"],
            str(part["problems"]),
            *(spread(part[name], too_few=name in part["too_few"]) for name in names),
        ]
        for part in slices
    ]
    return table(["slice", "problems", *names], rows)


def sweep_report(summaries: Sequence[Mapping[str, Any]]) -> str:
    """Return one line for each decoding temperature or point between two models."""
    most = max(summaries, key=lambda x: x["n"])
    names = list(most["scores"])
    rows = [
        [
            x["label"],
            *(
                spread(x["scores"][name], too_few=name in x["too_few"])
                if name in x["scores"]
                else NONE
                for name in names
            ),
            spread(list(x["majority"].values())[-1]),
            f"{x['distinct']:.1f}",
        ]
        for x in summaries
    ]
    lines = table(["", *names, "maj@n", "distinct"], rows)
    return _explained(f"{_how(most, swept=True)}\n\n{lines}")


def difficulty_cells(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Return header and lines of problems gained and lost by difficulty, for every run."""
    lines = []
    for row in rows:
        for x in row["difficulty"]:
            counts = [f"{x[name]:.4g}" for name in ("problems", "gained", "lost")]
            rates = f"{x['before']:.3f} → {x['after']:.3f}"
            p = number(x["p"], ".2g")
            lines.append([row["run"], x["difficulty"], counts[0], rates, *counts[1:], p])
    return ["run", "difficulty", "problems", "success rate", "gained", "lost", "p"], lines
