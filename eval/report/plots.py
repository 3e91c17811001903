"""The look of all pictures: palette, marks, figures, axes and legends."""

import io
import math
from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Any, NamedTuple

import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Bbox
from PIL import Image
from torch import Tensor

# Okabe and Ito's palette, which colour-blind readers can distinguish
BLUE, VERMILLION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
ORANGE, SKY, YELLOW, BLACK = "#E69F00", "#56B4E9", "#F0E442", "#000000"

# for runs and rules in their order; a second round changes marker and line
COLOURS = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, BLACK)
MARKERS, LINES = ("o", "^", "s", "D", "v", "P", "X"), ("-", "--", ":", "-.")

OF_LEVEL = {"easy": SKY, "medium": "#BBBBBB", "hard": VERMILLION}
LEVEL_MARKERS = {"easy": "o", "hard": "^"}

Look = dict[str, Any]  # keyword arguments of matplotlib

TITLE, TEXT = 11, 8.5  # font sizes in points

FRONTIER: Look = {"color": "0.35", "linestyle": (0, (6, 2)), "linewidth": 1.2}
START: Look = {"color": "0.2", "marker": "*", "markersize": 15}
MIXTURES: Look = {"color": "0.1", "linewidth": 2.2, "alpha": 0.6}  # the curve over lambda
COSINES: Look = {"cmap": "RdBu", "vmin": -1, "vmax": 1}  # red below 0
RATES: Look = {"cmap": "viridis", "vmin": 0, "vmax": 1}  # marks coloured by a success rate


def style(i: int) -> Look:
    """Return colour and line of run or rule i."""
    turn = i // len(COLOURS)
    return {"color": COLOURS[i % len(COLOURS)], "linestyle": LINES[turn % len(LINES)]}


def marker(i: int) -> str:
    return MARKERS[(i + i // len(COLOURS)) % len(MARKERS)]


def figure(width: float, height: float) -> Figure:
    """Return an empty figure of a size in inches, whose parts do not overlap."""
    return Figure(figsize=(width, height), layout="constrained")


def panels(
    count: int, columns: int, size: tuple[float, float], below: float
) -> tuple[Figure, list[Axes]]:
    """Return `count` panels of a size, at most `columns` per row, with room `below` in inches."""
    columns = min(columns, count)
    rows = math.ceil(count / columns)
    made = figure(size[0] * columns, size[1] * rows + below)
    every = made.subplots(rows, columns, squeeze=False).flatten()
    for axes in every[count:]:
        axes.set_visible(False)
    return made, list(every[:count])


def plain(axes: Axes) -> None:
    """Put a pale grid behind the data, and remove the frame above and to the right."""
    axes.grid(color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def titled(figure: Figure, text: str) -> None:
    """Write the title of a figure with several panels."""
    figure.suptitle(text, fontsize=TITLE + 2)


def over_steps(axes: Axes) -> None:
    """Label the axis of the steps, with whole numbers only."""
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def legend_beside(axes: Axes, **more: Any) -> None:
    """Put the legend to the right of the axes, so that it covers no data."""
    place: Look = {"loc": "center left", "bbox_to_anchor": (1.01, 0.5)}
    axes.legend(fontsize=8, frameon=False, **place, **more)


def legend_above(axes: Axes) -> None:
    """Put the legend above the axes, in two columns."""
    place: Look = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0)}
    axes.legend(fontsize=8, frameon=False, **place, ncols=2)


def legend_under(axes: Axes) -> None:
    """Put the legend under the axes, in two columns."""
    place: Look = {"loc": "upper left", "bbox_to_anchor": (0, -0.16)}
    axes.legend(fontsize=8, frameon=False, **place, ncols=2)


class Label(NamedTuple):
    text: str
    points: Sequence[tuple[float, float]]  # one of these is to be labelled
    colour: str


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
    figure.draw_without_rendering()  # it places the axes
    scale = figure.dpi / 72
    drawn, taken = _pixels(axes), list[Bbox]()
    for label in labels:
        size = _size(axes, label.text)
        ways = [
            (_box(axes.transData.transform(point), size, place, scale), place, point)
            for point in label.points
            for place in PLACES
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
    point: Sequence[float], size: tuple[float, float], place: tuple[int, int, int], scale: float
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


def png(figure: Figure, dpi: int) -> bytes:
    """Return a PNG of 256 colours: a third of the size, the same look."""
    full, small = io.BytesIO(), io.BytesIO()
    figure.savefig(full, format="png", dpi=dpi)
    Image.open(full).convert("RGB").quantize(256).save(small, "png")
    return small.getvalue()
