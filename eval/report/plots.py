"""The look of all pictures: palette, marks, figures, axes and legends."""

import io
import math
import textwrap
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

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
    """Write the title of a figure with several panels, in lines that it has room for."""
    size = TITLE + 2
    figure.suptitle(wrapped(text, figure.get_figwidth(), size), fontsize=size)


def wrapped(text: str, inches: float, size: float) -> str:
    """Return a text in lines that fit a width, in letters of a size in points."""
    return "\n".join(textwrap.wrap(text, int(72 * inches / (0.55 * size)), break_on_hyphens=False))


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


def png(figure: Figure, dpi: int) -> bytes:
    """Return a PNG of 256 colours: a third of the size, the same look."""
    full, small = io.BytesIO(), io.BytesIO()
    figure.savefig(full, format="png", dpi=dpi)
    Image.open(full).convert("RGB").quantize(256).save(small, "png")
    return small.getvalue()
