"""The pictures of a diagnosis: their texts, from numbers made by hand."""

import itertools

import pytest
import torch

from eval.diagnosis import pictures
from eval.diagnosis.analysis import analyse
from surgery.interference import FeatureSums


def made(prompts, measures=("last_layer", "ghost")):
    """Pictures of two families of prompts, with one vector for each measure."""
    c = torch.tensor([7, 1] * (prompts // 2))
    signs = torch.where(c == 7, 1.0, -0.5).double()[:, None]
    vectors = torch.randn(prompts, 3, generator=torch.Generator().manual_seed(0)).double()
    sums = torch.stack([c, c - 8], 1)[..., None] * ((signs + 0.3 * vectors) / 8)[:, None]
    found = {name: FeatureSums(c, 8, sums) for name in measures}
    records = [
        {"id": str(i), "prompt": f"{i}", "gold": "", "c": int(x), "n": 8} for i, x in enumerate(c)
    ]
    return {
        x: figure for x, (_, figure) in pictures.pictures(analyse(found, records, 8), found).items()
    }


def texts(figure):
    return " ".join(x.get_text() for x in figure.findobj(match=lambda x: hasattr(x, "get_text")))


def test_few_prompts_show_no_proxy():
    assert "proxy" in made(20) and "proxy" not in made(18)


def test_a_symlog_axis_is_called_so():
    drawn = made(20)
    for name in ("agreement", "weights", "proxy"):
        assert "symlog axis" in texts(drawn[name]), name


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_the_ticks_of_the_thresholds_do_not_touch(scale):
    value = {"value": -0.5 * scale, "low": -3.1234 * scale, "high": 0.9 * scale}
    row = {"measured": True, "delta_1": 0.8, "delta_2": 0.05, "easy": 44, "hard": 15}
    row |= {"plugin": value, "loo": value, "naive": None}
    figure = pictures.thresholds([row], "last_layer", 8)
    figure.draw_without_rendering()
    labels = [x.get_window_extent() for x in figure.axes[0].get_xticklabels()]
    assert len(labels) > 3 and all(b.x0 - a.x1 > 5 for a, b in itertools.pairwise(labels))


def test_an_unknown_cosine_is_explained():
    known = {"k": [1, 2], "value": [[1.0, 0.5], [0.5, 1.0]]}
    assert "unknown" not in texts(pictures.cosine_map(known, "last_layer"))
    unknown = {"k": [1, 2], "value": [[None, None], [None, 1.0]]}
    assert "white, –: unknown" in texts(pictures.cosine_map(unknown, "last_layer"))
