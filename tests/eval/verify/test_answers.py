r"""Answers by their marks: ``\boxed{}``, ``####``, ``Answer:``."""

import pytest

from eval.verify.answers import boxes, canonical, extract, gold, several


@pytest.mark.parametrize(
    ("text", "contents"),
    [
        (r"\boxed{\frac{1}{\sqrt{2}}}", [r"\frac{1}{\sqrt{2}}"]),
        (r"\boxed{\left\{1, 2\right.}", [r"\left\{1, 2\right"]),  # an escaped brace is no group
        (r"$\boxed 5$ and \fbox{6}.", ["5", "6"]),
        (r"$\boxed\frac12$", [r"\frac12"]),
        (r"\boxed5.", ["5"]),
        (r"\fbox{\boxed{7}}", ["7"]),
        (r"within \boxed{}: \boxed{8", []),
        (r"\boxedness{1}", []),
    ],
)
def test_boxes(text, contents):
    assert [content for *_, content in boxes(text)] == contents


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (r"\boxed{3}. Wait, no: \boxed{5}", r"\boxed{5}"),
        (r"\boxed{3} or $\boxed{5}$", r"\boxed{3, 5}"),
        (r"\boxed{5}, \boxed{5}", r"\boxed{5}"),
        (r"$\boxed{44} \pmod{83}$.", r"\boxed{44\pmod{83}}"),
        (r"\boxed{3}\pmod 7, or \boxed{5} \mod{7}", r"\boxed{3, 5\mod{7}}"),
        ("\\boxed{3}\n#### 5\nDone.", "5"),
        ("#### 5\n\\boxed{3}", r"\boxed{3}"),
        ("Answer: 4\nAnswer: 18 dollars.", "18 dollars"),
        ("**Answer:** 18", "18"),
        ("Final Answer: The final answer is $18.50$. I hope so.", "$18.50$"),
        ("Answer:\n\n18", "18"),
        ("Answer:\n  #### 18", "18"),
        ("#### answer: 18", "18"),
        ("My answers: 3\nANSWER: 18", "18"),
        ("The answer is 3.\nSo the answer is 5. Thanks", "5"),
        (r"\boxed{5}, and the answer is correct.", r"\boxed{5}"),
        ("#### Step one\nbecause\n#### 7", "7"),
        ("\\boxed{5}\n#### Check\nfine", r"\boxed{5}"),
        ("#### yes", "yes"),
        ("3 + 4 is\n7.", "7"),
        ("I count 12 of them and then \\boxed{1", ""),
        ("", ""),
    ],
)
def test_the_last_mark_counts(response, answer):
    assert extract(response) == answer


def test_gold_of_a_solution():
    assert gold("5 * 2 = <<5*2=10>>10\n#### 1,000") == "1,000"
    assert gold(r"so $x = 3$, and $\boxed{1} \ne \boxed{\text{(B)}}$.") == r"\text{(B)}"
    assert gold("the answer is 5") is None  # said, but not marked as a solution's end


@pytest.mark.parametrize(
    "text", ["10000", "10{,}000", "10,000", r"10,\!000", "$10,000$", r"\text{10000}.", r"\$10000"]
)
def test_one_number_in_many_spellings(text):
    assert canonical(rf"\boxed{{{text}}}") == "10000"
    assert not several(rf"\boxed{{{text}}}")


def test_spelling_keeps_what_has_a_meaning():
    assert canonical("3 5") != canonical("35")
    assert canonical(r"\left( 1, 2 \right]") == "(1,2]"
    assert canonical(r"\dfrac{1}{2}") == r"\frac{1}{2}"


@pytest.mark.parametrize(
    ("answer", "more"),
    [
        (r"\boxed{3, 5}", True),
        (r"\boxed{3 \text{ or } 5}", True),
        (r"\boxed{3; 5}", True),
        ("either 3 or 5", True),
        ("3 (or 5)", True),
        (r"\boxed{x \text{ and } y}", True),
        (r"\boxed{(3, 5)}", False),
        (r"\boxed{\{3, 5\}}", False),
        (r"\boxed{\frac{1,000}{3}}", False),
        ("so, all in all, it is 5", False),
        ("an orange", False),
    ],
)
def test_lists_and_hedges_name_several_values(answer, more):
    assert several(answer) is more
