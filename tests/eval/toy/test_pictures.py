"""The toy's pictures: names, colours and steps."""

import pytest

from eval.toy import pictures
from eval.toy.study import Setting, study


@pytest.fixture(scope="module")
def small():
    return study(Setting(prompts=200, steps=130))


def test_every_path_has_a_name_and_a_look_of_its_own(small):
    figure = pictures.paths(small)
    (legend,) = figure.legends
    names = [x.get_text() for x in legend.get_texts()]
    looks = {(x.get_color(), x.get_marker()) for x in legend.get_lines()}
    assert len(names) == len(set(names)) == len({x for x, _ in looks}) == len(small.paths)
    written = "\n".join(x.get_text() for x in figure.axes[1].texts)
    assert "none (pass@5)" in names and "none (pass@5)" in written
    assert "pass@5" not in written.replace("none (pass@5)", "")


def test_training_shows_all_steps(small):
    lines = [line for axes in pictures.training(small).axes for line in axes.lines]
    assert {len(line.get_xdata()) for line in lines} == {131}


def test_the_marks_of_the_kernel_are_explained(small):
    legend = pictures.kernel(small).axes[0].get_legend()
    assert [x.get_text() for x in legend.get_texts()] == ["easy prompts", "hard prompts"]
