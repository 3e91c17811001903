"""The README's own code runs as it stands there, and its file tree is the project's."""

import re
import subprocess
import sys

import pytest
import torch

from tests.commands import ROOT

TEXT = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.S)


@pytest.mark.parametrize("n", [2, 3, 8])
@pytest.mark.parametrize("rule", ["pcgrad", "agreement_clip"])
def test_surgery_alone_without_deepspeed(rule, n):
    """The example for other trainers, where neither deepspeed nor our trainer can be imported."""
    (block,) = [x for x in BLOCKS if "def surgery_advantages" in x]
    check = (
        "import sys\n"
        "for name in ('deepspeed', 'transformers', 'trainers', 'eval'): sys.modules[name] = None\n"
        f"{block.replace('pcgrad', rule)}\n"
        f"correct = torch.randint(0, 2, (6, {n}), generator=torch.Generator().manual_seed(0))\n"
        f"a = surgery_advantages(correct, torch.randn(6 * {n}, 5), 2)\n"
        f"assert a.shape == (6, {n}) and a.isfinite().all()\n"
    )
    done = subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True)
    if rule == "agreement_clip" and n == 2:  # refused, with its reason
        assert done.returncode and "ValueError: n = 2: this rule decides by" in done.stderr
    else:
        assert done.returncode == 0, done.stderr


def test_the_rule_of_ones_own(tmp_path):
    from surgery.geometry import Geometry, Products
    from surgery.rules import find_rule

    (block,) = [x for x in BLOCKS if "def half_as_much" in x]
    (tmp_path / "mine.py").write_text(block)
    rule = find_rule(f"{tmp_path}/mine.py:half_as_much").bind({"cap": 10.0})
    found = Geometry(torch.ones(3), Products(-1.0, 2.0, 1.0), torch.zeros(3))
    alpha, beta = rule(torch.ones(3), found, {})
    assert alpha.tolist() == [1, 1, 1] and beta.tolist() == [0.25] * 3


def test_the_file_tree():
    tree = TEXT[TEXT.index("surgery/    ") : TEXT.index("## Configurations")]
    named = set(re.findall(r"(\w+\.py)\b", tree))
    for package in ("surgery", "eval", "trainers", "launch"):
        files = {x.name for x in (ROOT / package).rglob("*.py")} - {"__init__.py"}
        assert files <= named, files - named


def test_every_configuration_is_listed():
    for path in (ROOT / "configs").rglob("*.yaml"):
        root = path.parent.with_name(f"{path.parent.name}.yaml")  # of which it is a variant
        name = (root if root.is_file() else path).relative_to(ROOT / "configs")
        assert f"`{name}`" in TEXT or path.name == "base.yaml", name
