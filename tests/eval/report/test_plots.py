"""Where labels stand: by hand, and without overlaps in a crowd."""

import io
import itertools

import pytest
from matplotlib.text import Text
from PIL import Image

from eval.report import plots
from eval.report.compare import compare, drawn_alike
from eval.report.curve import curves
from eval.report.pictures import against_k, flows, looks, over_steps, pareto
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


def test_titles_of_flows_are_cut_and_overlapped_by_nothing(tmp_path):
    """Long labels take several lines; the title has the thresholds."""
    for i in range(4):
        name = f"{'a long name of a model' * 2} {i}"
        make(tmp_path / str(i) / "seed0", (0.5, 0.9), **{"model.path": name})
    figure = flows(grouped(find_runs([tmp_path])))
    figure.draw_without_rendering()
    titles = [axes.title.get_window_extent() for axes in figure.axes]
    assert overlaps(titles) == 0 and all(
        figure.bbox.x0 <= x.x0 < x.x1 <= figure.bbox.x1 for x in titles
    )
    title = figure.get_suptitle()
    assert "easy above 0.80, hard below 0.15, medium between" in title


def drawn(folder):
    runs = find_runs([folder])
    groups = grouped(runs)
    rows = drawn_alike(compare(runs), groups)
    mixed = curves([*groups.values()], rows[0]["exact"])
    return rows, groups, mixed


def test_pictures_say_the_kind_of_their_values(tmp_path):
    for seed in (0, 1):
        make(tmp_path / "x" / f"seed{seed}", (0.6, 0.9), seed)
    rows, groups, mixed = drawn(tmp_path)
    title = over_steps(rows, groups, looks(groups, mixed), 8).get_suptitle()
    assert title == "Over training on Task: exact values (line: mean, band: range over seeds)"
    assert pareto(rows, groups, mixed, 8).axes[0].get_xlabel() == "pass@1 (exact)"
    assert against_k(rows, groups, looks(groups, mixed), 8).axes[0].get_ylabel() == "pass@k (exact)"
    make(tmp_path / "y" / "seed0", (0.6, 0.9), exact=False, **{"surgery.rule": "floor"})
    rows, groups, mixed = drawn(tmp_path)
    assert "sampled values" in over_steps(rows, groups, looks(groups, mixed), 8).get_suptitle()


def test_all_lines_of_pass_k_have_marks_and_one_mixture_is_no_curve(tmp_path):
    make(tmp_path / "x" / "seed0", (0.6, 0.9))
    make(tmp_path / "m" / "seed0", (0.7, 0.85), **{"surgery.rule": "mix", "surgery.mix": 0.5})
    rows, groups, mixed = drawn(tmp_path)
    lines = against_k(rows, groups, looks(groups, mixed), 8).axes[0].lines
    assert len(lines) == 3 and all(x.get_marker() != "None" for x in lines)

    def said():
        return {x.get_text() for x in pareto(*drawn(tmp_path), 8).axes[0].texts}

    assert "λ = 0.5" in said() and "fixed mixtures" not in said()
    make(tmp_path / "n" / "seed0", (0.8, 0.82), **{"surgery.rule": "mix", "surgery.mix": 1.0})
    assert "fixed mixtures" in said()


def test_a_label_touches_no_large_mark():
    figure = plots.figure(6, 4)
    axes = figure.subplots()
    (mark,) = axes.plot(0.5, 0.5, **plots.START)
    label_points(axes, [Label("base", [(0.5, 0.5)], "0.2", 5)])
    figure.draw_without_rendering()
    (text,) = boxes(axes)
    assert not text.overlaps(mark.get_window_extent().padded(2))


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
