import random

import pytest
from latex2sympy2_extended.antlr_parser import PSParser
from latex2sympy2_extended.latex2sympy2 import _Latex2Sympy

from eval.verify.worker import in_two_stages
from tests.hostile import LISTS, NOT_IT

SHAPES = [
    *(
        r"\frac{@}{@}",
        r"\sqrt{@}",
        r"\left(@\right)",
        "(@,@)",
        "[@,@)",
        "@+@",
        "@-@",
        "@@",
        "@^{@}",
    ),
    *(r"\{@,@\}", "@,@", "@=@", r"@\le @", r"@\cup @", r"\sin @", r"\log_{@}@", "|@|", "@!", "-@"),
    *(r"\begin{pmatrix}@&@\\@\end{pmatrix}", r"\sum_{@=@}^{@}@", r"\int_{@}^{@}@dx", r"@\%", "@:@"),
    *(r"@\in @", "@;@", "@/@", r"@\cdot @", r"@\pm @", "f(@)", r"\binom{@}{@}", "@ < @ < @", "@_@"),
    *(r"\text{@}", r"@^\circ", r"@\text{ or }@", r"@\setminus @", r"\lim_{x\to @}@", "@ @", "@ @~"),
]
LEAVES = ["x", "2", "3.5", "10", "n", r"\pi", "1,000", "i", "e", r"\infty", r"\mathbb{R}", "y", "}"]


def expression(chance: random.Random, depth: int) -> str:
    parts = chance.choice(SHAPES if depth else LEAVES).split("@")
    return (
        "".join(x + expression(chance, depth - 1) for x in parts[:-1]) + parts[-1]
        if depth
        else parts[0]
    )


def outcome(rule, text):
    parser = _Latex2Sympy().create_parser(text)
    try:
        return rule(parser).toStringTree(recog=parser)
    except Exception as error:
        return f"refused: {error}"


@pytest.mark.parametrize("depth", [1, 2])
def test_two_stages_find_what_one_finds(depth):
    """Trees and refusals: no character that the lexer does not know is skipped the second time."""
    chance = random.Random(depth)
    texts = [expression(chance, depth) for _ in range(300 // depth**2)]
    texts += [x.removeprefix(r"\boxed{").removesuffix("}") for x in [*LISTS, *NOT_IT][::2]]
    rule, found = in_two_stages(PSParser.math), []
    for text in texts:
        found.append(outcome(PSParser.math, text))
        assert outcome(rule, text) == found[-1], text
    refused = sum(x.startswith("refused") for x in found)
    assert 20 < refused < len(found) - 20
