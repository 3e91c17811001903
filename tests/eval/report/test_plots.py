"""Where labels stand: by hand, and without overlaps in a crowd."""

import io
import itertools

import pytest
from matplotlib.text import Text
from PIL import Image

from eval.report import plots
from eval.report.pictures import flows
from eval.report.places import Label, apart, label_ends, label_points
from eval.report.runs import find_runs, grouped
from tests.fakes import make_run as make


def test_heights_move_apart_as_little_as_possible():
    assert apart([0.2, 0.5], 0.1) == pytest.approx([0.2, 0.5])
    assert apart([0.5, 0.5], 0.1) == pytest.approx([0.45, 0.55])  # up and down alike
    assert apart([0.4, 0.45, 0.9], 0.1) == pytest.approx([0.375, 0.475, 0.9])
    assert apart([0.98, 1.0], 0.1) == pytest.approx([0.9, 1.0])  # not beyond the ends
    assert apart([0.0, 0.0], 0.1) == pytest.approx([0.0, 0.1])


def boxes(axes):
    return [Text.get_window_extent(text) for text in axes.texts]  # without the leading lines


def overlaps(found):
    return sum(a.overlaps(b) for a, b in itertools.combinations(found, 2))


@pytest.mark.parametrize("write", [label_points, label_ends])
def test_labels_of_near_points_do_not_overlap(write):
    figure = plots.figure(6, 4)
    axes = figure.subplots()
    points = [(0.5 + 0.01 * i, 0.5 + 0.002 * i) for i in range(6)]
    axes.plot(*zip(*points, strict=True), "o")
    axes.set(xlim=(0, 1), ylim=(0, 1))
    write(axes, [Label(f"run {i}", [point], "0.2") for i, point in enumerate(points)])
    figure.draw_without_rendering()
    assert len(axes.texts) == 6 and overlaps(boxes(axes)) == 0


def test_a_label_avoids_lines_and_stays_inside():
    figure = plots.figure(6, 4)
    axes = figure.subplots()
    axes.plot([0.5, 1.0], [0.5, 0.5])  # to the right of the point, where a label would stand first
    axes.set(xlim=(0, 1), ylim=(0, 1))
    label_points(axes, [Label("a run", [(0.5, 0.5)], "0.2"), Label("x", [(1, 1)], "0.2")])
    figure.draw_without_rendering()
    free, corner = boxes(axes)
    line = axes.transData.transform((0.5, 0.5))
    assert free.x1 < line[0] or free.y0 > line[1] or free.y1 < line[1]
    assert corner.x1 <= axes.bbox.x1 and corner.y1 <= axes.bbox.y1


def test_all_flows_have_one_scale_and_whole_bars(tmp_path):
    """One run leaves the easy half and the hard half as they are; one makes easy ones medium."""
    make(tmp_path / "x" / "seed0", (0.5, 0.9), exact=False)
    make(tmp_path / "y" / "seed0", (0.25, 0.9), exact=False, **{"surgery.rule": "pcgrad"})
    first, second = flows(grouped(find_runs([tmp_path]))).axes
    assert first.get_xlim() == second.get_xlim() and first.get_ylim() == second.get_ylim()
    low, high = first.get_ylim()
    for axes in (first, second):
        for left in (True, False):
            bars = [bar.get_extents() for bar in axes.patches if (bar.get_x() < 0.5) == left]
            spans = [sorted(axes.transData.inverted().transform(bar)[:, 1]) for bar in bars]
            assert all(low < bottom < top < high for bottom, top in spans)
            assert sum(top - bottom for bottom, top in spans) == pytest.approx(1)


def test_axes_of_steps_have_whole_numbers():
    figure = plots.figure(4, 3)
    axes = figure.subplots()
    axes.plot([0, 1, 2], [0, 1, 0])
    plots.over_steps(axes)
    assert all(float(tick).is_integer() for tick in axes.get_xticks())


def test_a_png_has_a_palette():
    figure = plots.figure(3, 2)
    figure.subplots().plot([0, 1], [0, 1])
    assert Image.open(io.BytesIO(plots.png(figure, 50))).mode == "P"
