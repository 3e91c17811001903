"""Sentences under a comparison of runs: which rows can be compared, and how to read them."""

from collections.abc import Iterator, Mapping, Sequence

from eval.report.compare import Row, render
from eval.report.curve import mixture
from eval.report.labels import differing, is_measured
from eval.report.runs import Run
from eval.report.tables import STAR, TOO_FEW

OWN = ("surgery.", "objective.")  # settings of the rules themselves


def notes(rows: Sequence[Row], groups: Mapping[str, Sequence[Run]], margin: float) -> list[str]:
    """Return sentences that say how far the rows can be compared, and that explain the table."""
    lines = [*not_alike(rows, groups), *_of_seeds(rows, margin)]
    rivals = {mixture(runs[0]) for runs in groups.values()}
    if any(row["above_mix"] for row in rows):
        lines.append(
            "Above mix: pass@k minus that of the fixed mixtures' curve at the same pass@1 (level"
            " beyond its ends), with 95 % intervals. Run and curve have values of one kind: exact"
            " ones (jackknife over seeds) if both have them for two common seeds, else sampled ones"
            " (bootstrap over seeds and problems; one seed: over problems)."
        )
    elif None in rivals and any(rivals):  # a rule that measures beside mixtures
        lines.append(
            "No distance to the fixed mixtures' curve: it needs two values of λ on common seeds,"
            " with the model, task, evaluation, steps and completions per step of the other rows."
        )
    if STAR in render(rows):
        lines.append(TOO_FEW)
    return lines


def not_alike(rows: Sequence[Row], groups: Mapping[str, Sequence[Run]]) -> Iterator[str]:
    """Yield a sentence about what is measured, and one about other settings, where rows differ.

    Exact values are those of the complete population, whatever the evaluation draws from it.
    """
    exact = all(row["exact"] for row in rows)
    configs = [runs[0].config for runs in groups.values()]
    keys = differing(configs)
    if exact:
        keys = [key for key in keys if key == "eval.k" or not key.startswith("eval.")]
    measured = [key for key in keys if is_measured(key)]
    problems = {tuple(x["id"] for x in runs[0].records("after")) for runs in groups.values()}
    if measured:
        yield f"Not comparable: {_listed(measured)} {_verb(measured)} between the rows."
    elif len(problems) > 1 and not exact:
        yield "Not comparable: the problems of the evaluation differ between the rows."
    trained = [key for key in keys if key not in measured and not key.startswith(OWN)]
    if trained:
        yield f"Beside the rules' own settings, the rows differ in {_listed(trained)}."


def _listed(names: Sequence[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def _verb(names: Sequence[str]) -> str:
    return "differs" if len(names) == 1 else "differ"


def _of_seeds(rows: Sequence[Row], margin: float) -> Iterator[str]:
    """Yield how values, intervals and verdicts arise, for the kinds of rows that there are."""
    several = [row for row in rows if row["seeds"] > 1]
    if any(row["exact"] for row in several):
        yield (
            "Several seeds: exact values; means over seeds. Changes are paired, with Student-t 95 %"
            " intervals over seeds."
        )
    if any(not row["exact"] for row in several):
        yield (
            'Several seeds, "sampled": sampled values; means over seeds. Changes are paired, with'
            " 95 % intervals over seeds and problems."
        )
    if several:
        beyond = f"lies beyond ±{margin:g}" if margin else "differs from 0"
        yield (
            f"Better, worse: the change {beyond} with p < 0.05, Holm-adjusted over all rows of"
            ' several seeds. So an interval that excludes 0 can stand beside "cannot tell".'
        )
    if len(several) < len(rows):
        beyond = (
            f"lies beyond ±{margin:g}"
            if margin
            else "does not contain 0, as the run itself says at its end"
        )
        yield (
            "One seed: sampled values, with the run's own 95 % interval over problems (BCa"
            f" bootstrap). Rose, fell: this interval {beyond}. Another seed may end elsewhere."
        )
