"""The texts of a diagnosis, from products made by hand."""

import pytest
import torch

from eval.diagnosis.analysis import analyse
from eval.diagnosis.report import markdown, verdict
from surgery.interference import FeatureSums

SETTINGS = {
    "model.path": "m",
    "task.name": "t",
    "diagnose.temperature": 1.0,
    "diagnose.top_p": 1.0,
    "diagnose.seed": 0,
    "surgery.modules": None,
}


def figures(loo, measured=True, too_few=False, without=2, rate=0.5):
    rows = [{"measured": measured, "too_few": too_few, "loo": loo}]
    measures = {"last_layer": {"groups": []}, "ghost": {"groups": rows}}
    known = {"prompts": 40, "n": 32, "no_gradient": without, "pass@1": rate}
    return {"k": 16, "measures": measures, **known}


def text(counts, n, directions):
    """The markdown of prompts whose right answers lie along `directions`, wrong ones opposite."""
    c = torch.tensor(counts)
    p = (c / n).double()
    sums = torch.stack([c * (1 - p), -(n - c) * p], 1)[..., None] * directions[:, None]
    records = [
        {"id": str(i), "prompt": f"{i}", "gold": "", "c": x, "n": n} for i, x in enumerate(counts)
    ]
    found = analyse({"last_layer": FeatureSums(c, n, sums)}, records, n)
    return markdown(found | {"settings": SETTINGS}, {})


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
    assert verdict(figures({"value": value, "low": low, "high": high}), "f").startswith(begins)


def test_few_gradients():
    said = "k = 16: cannot tell. Only 3 of 40 prompts have a gradient; raise diagnose.prompts."
    assert verdict(figures(None, measured=False, without=37), "f") == said
    below = {"value": -2.0, "low": -3.0, "high": -1.0}
    assert verdict(figures(below, too_few=True, without=37), "f") == said


@pytest.mark.parametrize(
    ("rate", "said"),
    [
        (
            0.0,
            "no answer of 1,280 was right, so there is no gradient; look at the answers in f, at"
            " the prompt, the verifier and the model",
        ),
        (
            1.0,
            "every answer of 1,280 was right, so there is no gradient; look at the answers in f"
            " and at the verifier, or take harder problems",
        ),
        (
            0.5,
            "no prompt has both right and wrong answers, so there is no gradient; raise"
            " diagnose.samples or diagnose.temperature",
        ),
    ],
)
def test_no_gradient(rate, said):
    loo = {"value": 0.0, "low": None, "high": None}
    found = verdict(figures(loo, without=40, rate=rate), "f")
    assert found == f"k = 16: cannot tell, as {said}."


def test_without_a_gradient_there_are_no_products():
    said = text([0] * 9, 4, torch.ones(9, 2).double())
    assert "9 always or never solved" in said and "look at the answers in prompts.jsonl" in said
    assert "## last layer" not in said and "nan" not in said and "inf" not in said


def test_products_of_few_prompts_have_a_star():
    """Four prompts with a gradient, then enough; a cosine of 1 [1, 1] would look sure."""
    directions = torch.tensor([[1.0, 0.1], [1.0, -0.1]]).double().repeat(20, 1)
    few, enough = (text(x, 8, directions[: len(x)]) for x in ([1, 7, 1, 7], [1, 7] * 20))
    assert "[1.00, 1.00]*" in few and "\n* Too few: fewer than five" in few
    assert "cannot be told" in few and "cos(J_k,J_m), widest filter*" in few
    assert "]*" not in enough and "Too few" not in enough


def test_the_change_of_sign_is_given_only_if_it_is_known():
    """Prompts in opposite directions: from noise alone, and with more than noise."""
    one = torch.tensor([1.0, 0.0]).double()
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(40, 2, generator=generator).double()
    said = text([1, 7] * 20, 8, noise)
    assert "from which on the plug-in ⟨J_k,J_1⟩ of the widest filter is negative cannot" in said
    assert "on (95 %" not in said
    agreeing = text([1, 7] * 20, 8, one.repeat(40, 1))
    assert (
        "The plug-in ⟨J_k,J_1⟩ of the widest filter is negative for no k up to 8. The" in agreeing
    )
    assert "The theory predicts no change, as no agreement is negative." in agreeing
    easy, hard = one, torch.tensor([-0.5, 0.1]).double()
    opposed = text([7, 7, 7, 1] * 10, 8, torch.stack([easy, easy, easy, hard]).repeat(10, 1))
    assert "is negative from k = 1." in opposed and "the theory predicts: at the latest" in opposed


def test_pairs_near_rounding_are_not_listed():
    """Two hard prompts, whose gradients are large and agree, and easy ones of tiny gradients."""
    large, tiny = torch.tensor([1.0, 0.0]).double(), torch.tensor([-1e-9, 0.0]).double()
    directions = torch.stack([large, large, *[tiny] * 6])
    assert "Which prompts interfere" not in text([1, 1, *[7] * 6], 8, directions)
    assert "Which prompts interfere" in text([1, 1, *[7] * 6], 8, torch.stack([large, -large] * 4))
