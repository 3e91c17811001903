"""The verdict of a diagnosis, from products made by hand."""

import pytest

from eval.diagnosis.report import verdict


def figures(loo, measured=True):
    rows = [{"measured": measured, "loo": loo}]
    return {"k": 16, "measures": {"last_layer": {"groups": []}, "ghost": {"groups": rows}}}


@pytest.mark.parametrize(
    ("low", "high", "begins"),
    [
        (
            -3.0,
            -1.0,
            "k = 16: conflict. A small step that raises pass@16 lowers pass@1: ⟨J_16,",
        ),
        (1.0, 3.0, "k = 16: none. A small step that raises pass@16 raises pass@1 as well: ⟨J_16,"),
        (-1.0, 3.0, "k = 16: cannot tell. ⟨J_16,J_1⟩ = 1 [-1, 3], by all parameters (ghost), may "),
        (None, None, "k = 16: cannot tell. ⟨J_16,J_1⟩ = 0, by all parameters (ghost), may have "),
    ],
)
def test_verdicts(low, high, begins):
    value = 0.0 if low is None else (low + high) / 2
    assert verdict(figures({"value": value, "low": low, "high": high})).startswith(begins)


def test_without_gradients():
    said = "k = 16: cannot tell. Too few prompts have a gradient; raise diagnose.prompts."
    assert verdict(figures(None, measured=False)) == said
