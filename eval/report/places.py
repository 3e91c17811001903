"""Labels beside the points and lines of a picture, where they cover nothing."""

from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import NamedTuple

import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox
from torch import Tensor

from eval.report.plots import TEXT, Look


class Label(NamedTuple):
    text: str
    points: Sequence[tuple[float, float]]  # one of these is to be labelled
    colour: str
    room: float = 0.0  # more distance to the point, in points, as for a large mark


# where a label may stand beside its point: how far in points, and in which direction
PLACES = [
    (far, x, y)
    for far in (7, 14, 24, 40)
    for x, y in ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1))
]
FAR = 20  # from here on a thin line leads from the label to its point


def label_points(axes: Axes, labels: Iterable[Label]) -> None:
    """Write each label beside a point of it, where it covers least of lines and other labels."""
    figure = axes.figure
    assert isinstance(figure, Figure)
    figure.draw_without_rendering()  # it places the axes
    scale = figure.dpi / 72
    drawn, taken = _pixels(axes), list[Bbox]()
    for label in labels:
        size = _size(axes, label.text)
        ways = [
            (_box(axes.transData.transform(point).tolist(), size, place, scale), place, point)
            for point in label.points
            for place in ((far + label.room, x, y) for far, x, y in PLACES)
        ]
        costs = [_cost(axes.bbox, box, drawn, taken) + 0.5 * place[0] for box, place, _ in ways]
        box, place, point = ways[costs.index(min(costs))]
        taken.append(box)
        far, x, y = place
        axes.annotate(
            label.text, point, (x * far, y * far), textcoords="offset points", fontsize=TEXT,
            color=label.colour, ha=("right", "center", "left")[x + 1],
            va=("top", "center", "bottom")[y + 1], arrowprops=_leader(label) if far > FAR else None,
        )  # fmt: skip


def _leader(label: Label) -> Look:
    return {"arrowstyle": "-", "color": label.colour, "linewidth": 0.6, "shrinkA": 1, "shrinkB": 4}


def _size(axes: Axes, text: str) -> tuple[float, float]:
    """Return width and height of a text in pixels."""
    trial = axes.text(0, 0, text, fontsize=TEXT)
    box = trial.get_window_extent()
    trial.remove()
    return box.width, box.height


def _box(
    point: Sequence[float], size: tuple[float, float], place: tuple[float, int, int], scale: float
) -> Bbox:
    """Return the box of a text of a size that stands at a place beside a point, in pixels."""
    far, *ways = place
    left, low = (
        at + way * far * scale - (1 - way) / 2 * length
        for at, way, length in zip(point, ways, size, strict=True)
    )
    return Bbox.from_bounds(left, low, *size).padded(2)


def _cost(room: Bbox, box: Bbox, drawn: Tensor, taken: Sequence[Bbox]) -> float:
    inside = room.x0 <= box.x0 <= box.x1 <= room.x1 and room.y0 <= box.y0 <= box.y1 <= room.y1
    return box.count_contains(drawn) + 100 * box.count_overlaps(taken) + (0 if inside else 10**4)


def _pixels(axes: Axes, apart: float = 3.0) -> Tensor:
    """Return points of all lines and bars in pixels, about evenly."""
    lines = [(line.get_path(), line.get_transform()) for line in axes.lines]
    for bars in axes.collections:
        if isinstance(bars, LineCollection):
            lines += [(path, bars.get_transform()) for path in bars.get_paths()]
    dense = [torch.from_numpy(way.transform(path.interpolated(50).vertices)) for path, way in lines]
    return (torch.cat(dense) / apart).round().unique(dim=0) * apart


def label_ends(axes: Axes, labels: Sequence[Label]) -> None:
    """Write labels of single points in a column to the right of the axes, in the points' order.

    Labels of points that are close move apart; thin lines lead to their points.
    """
    figure = axes.figure
    assert isinstance(figure, Figure)
    figure.draw_without_rendering()
    labels = sorted(labels, key=lambda label: label.points[0][1])
    at = [axes.transData.transform(label.points[0])[1] for label in labels]
    heights = [(y - axes.bbox.y0) / axes.bbox.height for y in at]
    gap = 1.3 * TEXT * figure.dpi / 72 / axes.bbox.height
    for label, height in zip(labels, apart(heights, gap), strict=True):
        axes.annotate(
            label.text, label.points[0], (1.04, height), textcoords="axes fraction", va="center",
            fontsize=TEXT, color=label.colour, annotation_clip=False,
            arrowprops=_leader(label) | {"relpos": (0, 0.5)},
        )  # fmt: skip


def apart(heights: Sequence[float], gap: float) -> list[float]:
    """Return the ascending heights nearest to these that lie `gap` or more apart, within 0..1.

    Without the bounds this is an isotonic regression: neighbours that are too close share a mean.
    """
    blocks: list[list[float]] = []
    for i, height in enumerate(heights):
        blocks.append([height - i * gap])
        while len(blocks) > 1 and fmean(blocks[-2]) > fmean(blocks[-1]):
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    level = [fmean(block) for block in blocks for _ in block]
    top = 1 - (len(heights) - 1) * gap
    return [i * gap + max(min(x, top), 0.0) for i, x in enumerate(level)]
