"""A diagnosis as markdown, for the file and for the terminal."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.diagnosis.analysis import analyse, per_prompt
from eval.files import replace_text, write_json, write_lines
from eval.records import Record
from eval.report.tables import NONE, STAR, markdown_table, number, spread
from eval.scores.summary import one_sided
from surgery.interference import Measured

Row = Mapping[str, Any]  # an item of a list in diagnosis.json

FEW = f"{STAR} Too few: fewer than five prompts have right and wrong answers, and so a gradient."
NAMES = {"ghost": "all parameters (ghost)", "last_layer": "last layer"}


def write(
    out: Path,
    measures: Mapping[str, Measured],
    records: Sequence[Record],
    k: int,
    settings: Mapping[str, Any],
    thresholds: bool,
) -> str:
    """Write diagnosis.md and .json, prompts.jsonl, pictures, TensorBoard; return a short text.

    `thresholds` asks for every pair of thresholds in that text. Its last line says what the folder
    holds.
    """
    from torch.utils.tensorboard import SummaryWriter

    from eval.diagnosis.pictures import pictures

    figures = analyse(measures, records, k) | {"settings": settings}
    made = pictures(figures, measures)
    text = markdown(figures, {name: caption for name, (caption, _) in made.items()})
    for old in out.glob("events.out.*"):
        old.unlink()
    with SummaryWriter(str(out)) as board:
        board.add_text("diagnosis", text)
        for name, (_, figure) in made.items():
            figure.savefig(out / f"{name}.png", dpi=100)
            board.add_figure(f"diagnosis/{name}", figure, close=False)
    write_lines(out / "prompts.jsonl", per_prompt(measures, records, k))
    replace_text(out / "diagnosis.md", text)
    write_json(out / "diagnosis.json", figures)
    lines = [verdict(figures, str(out / "prompts.jsonl")), "", *_body(figures, thresholds), ""]
    held = "Pictures and all thresholds" if made else "All answers"
    return "\n".join([*lines, f"{held}: {out}"])


def markdown(figures: Mapping[str, Any], pictures: Mapping[str, str]) -> str:
    """Return all of a diagnosis, with its verdict first."""
    title = f"# Interference of pass@{figures['k']} with pass@1"
    lines = [title, "", verdict(figures, "prompts.jsonl"), "", *_body(figures, thresholds=True)]
    for name, caption in pictures.items():
        lines += ["", f"## {caption}", "", f"![{caption}]({name}.png)"]
    return "\n".join(lines) + "\n"


def verdict(figures: Mapping[str, Any], place: str) -> str:
    """Return whether ascending pass@k lowers pass@1, by the unbiased product over all prompts.

    `place` names the file that holds the answers.
    """
    k, (name, result) = figures["k"], [*figures["measures"].items()][-1]
    row, prompts = result["groups"][0], figures["prompts"]
    if _without_gradient(figures):
        answers = prompts * figures["n"]
        why = one_sided(round(figures["pass@1"] * answers), answers, f"in {place}")
        why = why or (
            "no prompt has both right and wrong answers, so there is no gradient; raise "
            "diagnose.samples or diagnose.temperature"
        )
        return f"k = {k}: cannot tell, as {why}."
    if not row["measured"] or row["too_few"]:
        some = f"{prompts - figures['no_gradient']} of {prompts}"
        return f"k = {k}: cannot tell. Only {some} prompts have a gradient; raise diagnose.prompts."
    low, high = row["loo"]["low"], row["loo"]["high"]
    product = f"⟨J_{k},J_1⟩ = {spread(row['loo'], form='.3g')}, by {NAMES[name]}"
    if low is None or high is None or low <= 0 <= high:
        return f"k = {k}: cannot tell. {product}, may have either sign; raise diagnose.prompts."
    if high < 0:
        return f"k = {k}: conflict. A small step that raises pass@{k} lowers pass@1: {product}."
    return f"k = {k}: none. A small step that raises pass@{k} raises pass@1 as well: {product}."


def _without_gradient(figures: Mapping[str, Any]) -> bool:
    return figures["no_gradient"] == figures["prompts"]


def _body(figures: Mapping[str, Any], thresholds: bool) -> list[str]:
    """Return the lines on settings, products, the proxy and the pairs of prompts."""
    settings, k = figures["settings"], figures["k"]
    lines = [
        f"{settings['model.path']} on {settings['task.name']}: {figures['prompts']} prompts, n ="
        f" {figures['n']}, T = {settings['diagnose.temperature']:g}, top-p"
        f" {settings['diagnose.top_p']:g}, seed {settings['diagnose.seed']}. pass@1"
        f" {figures['pass@1']:.3f}; {figures['easy']} easy prompts (rate > 0.80), {figures['hard']}"
        f" hard ones (< 0.15), {figures['no_gradient']} always or never solved, which have no"
        " gradient.",
    ]
    if _without_gradient(figures):  # all products are 0
        return lines
    starred = False
    for name, result in reversed(figures["measures"].items()):
        only = settings["surgery.modules"] if name == "ghost" else None
        title = f"parameters that match {only} (ghost)" if only else NAMES[name]
        rows = [x for x in result["groups"] if thresholds or _thresholds(x) in (None, WIDE)]
        lines += ["", f"## {title}", "", _filter_table(rows, k)]
        starred |= any(x["measured"] and x["too_few"] for x in rows)
        if "cosines" in result:
            few = _widest(result)["too_few"]
            lines += ["", _cosine_table(result["cosines"], few), "", _sign_change(result)]
    if figures["proxy"]:
        lines += ["", "## The last layer as a proxy", "", _proxy_table(figures["proxy"])]
    if figures["pairs"]:
        lines += ["", "## Which prompts interfere", "", _pair_table(figures["pairs"], k)]
    return [*lines, "", FEW] if starred else lines


WIDE = (0.80, 0.15)  # the thresholds of the widest filter


def _thresholds(row: Row) -> tuple[float, float] | None:
    """Return the thresholds of easy and hard prompts; None for all prompts."""
    return None if row["delta_1"] is None else (row["delta_1"], row["delta_2"])


def _widest(result: Mapping[str, Any]) -> Row:
    return next(x for x in result["groups"] if _thresholds(x) == WIDE)


def _filter_table(rows: Sequence[Row], k: int) -> str:
    product = f"⟨J_{k},J_1⟩"
    header = ["easy, hard", "prompts", f"{product} plug-in", "unbiased", "cosine", "‖J_1‖²"]
    naive = rows[0].get("naive") is not None
    header += ["with self-terms"] if naive else []
    cells = []
    for row in rows:
        name = (
            "all" if row["delta_1"] is None else f"> {row['delta_1']:.2f}, < {row['delta_2']:.2f}"
        )
        line = [name, f"{row['easy']}, {row['hard']}"]
        if not row["measured"]:
            cells.append([*line, *[NONE] * (len(header) - 2)])
            continue
        few, cosine = row["too_few"], row["cosine"]
        line += [spread(row[x], too_few=few, form=".3g") for x in ("plugin", "loo")]
        known = cosine["value"] is not None
        line.append(spread(cosine, too_few=few, form=".2f") if known else NONE)
        line.append(spread(row["norm_1"], too_few=few, form=".3g"))
        cells.append([*line, f"{row['naive']:.3g}"] if naive else line)
    return markdown_table(header, cells)


def _cosine_table(cosines: Mapping[str, Any], few: bool) -> str:
    header = [
        f"cos(J_k,J_m), widest filter{STAR if few else ''}",
        *(f"m = {k:g}" for k in cosines["k"]),
    ]
    rows = [
        [f"k = {k:g}", *(number(c, ".2f") for c in row)]
        for k, row in zip(cosines["k"], cosines["value"], strict=True)
    ]
    return markdown_table(header, rows)


def _sign_change(result: Mapping[str, Any]) -> str:
    """Return where the sign changes, as far as that is known, and the k* of the theory."""
    series, widest = result["against_k"], _widest(result)
    change, product = series["sign_change"], "the plug-in ⟨J_k,J_1⟩ of the widest filter"
    ends = f"(95 %: {_end(change['low'])} to {_end(change['high'])})"
    if not change["known"]:
        measured = f"The k from which on {product} is negative cannot be told from these prompts"
    elif change["value"] is None:
        measured = f"T{product[1:]} is negative for no k up to {series['k'][-1]}"
        measured += f" {ends}" if change["low"] is not None else ""
    else:
        measured = f"T{product[1:]} is negative from k = {change['value']:.2f} on {ends}"
    if widest["outside_share"] is None or widest["k_star"] <= 1:  # <J_1, J_1> would not be above 0
        return f"{measured}."
    if math.isinf(widest["k_star"]):
        return f"{measured}. The theory predicts no change, as no agreement is negative."
    return (
        f"{measured}; the theory predicts: at the latest from k* = {widest['k_star']:.2f} on, if"
        " easy prompts agree and hard ones do not, which holds for"
        f" {100 * (1 - widest['outside_share']):.0f} % of the agreement."
    )


def _end(x: float | None) -> str:
    return "never" if x is None else f"{x:.2f}"


def _proxy_table(rows: Sequence[Row]) -> str:
    header = ["prompts", "count", "Pearson", "Spearman", "same sign"]
    cells = [
        [
            row["prompts"],
            str(row["count"]),
            *(number(row[x], ".2f") for x in ("pearson", "spearman")),
            f"{100 * row['same_sign']:.0f} %",
        ]
        for row in rows
    ]
    return markdown_table(header, cells)


def _pair_table(rows: Sequence[Row], k: int) -> str:
    header = [f"raising pass@{k} of", "rate", "lowers pass@1 of", "rate", "product", "cosine"]
    cells = [
        [
            _text(row["raised"]),
            f"{row['raised']['rate']:.2f}",
            _text(row["lowered"]),
            f"{row['lowered']['rate']:.2f}",
            f"{row['product']:.3g}",
            f"{row['cosine']:.2f}",
        ]
        for row in rows
    ]
    return markdown_table(header, cells)


def _text(who: Row) -> str:
    """Return one line for a cell; diagnosis.json has the complete texts."""
    text = " ".join(f"{who['prompt']} → {who['gold']}".split()).replace("|", "\\|")
    return text if len(text) <= 60 else f"{text[:28]} … {text[-29:]}"
