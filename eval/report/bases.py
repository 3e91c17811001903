"""The bases from which the runs of a picture start."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

from eval.report.compare import Row
from eval.report.labels import distinctions, measured_keys
from eval.report.runs import Run

MOST = 2  # with more bases than these a picture shows none


class Base(NamedTuple):
    label: str
    scores: dict[str, float]  # by metric


def bases(rows: Sequence[Row], groups: Mapping[str, Sequence[Run]], k: int) -> list[Base]:
    """Return the bases of all rows, those of one place only once, or none if there are too many.

    Several have labels with the settings in which they differ.
    """
    configs = [groups[row["run"]][0].config for row in rows]
    keys = measured_keys(configs)
    alike: dict[str, list[int]] = {}
    for i, config in enumerate(configs):
        alike.setdefault(repr([config.get(key) for key in keys]), []).append(i)
    apart: dict[tuple[float, ...], tuple[int, dict[str, float]]] = {}
    for places in alike.values():
        metrics = [name for name in rows[places[0]] if name.startswith("pass@")]
        scores = {x: fmean(rows[i][x]["before"] for i in places) for x in metrics}
        place = tuple(round(scores[x], 3) for x in ("pass@1", f"pass@{k}"))
        apart.setdefault(place, (places[0], scores))
    if len(apart) > MOST:
        return []
    parts = distinctions([configs[i] for i, _ in apart.values()], keys)
    return [
        Base(", ".join(["base", *part]), scores)
        for part, (_, scores) in zip(parts, apart.values(), strict=True)
    ]
