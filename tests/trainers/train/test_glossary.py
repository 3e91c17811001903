"""The glossary of trainers/README.md has every scalar that a run writes, and no other."""

import re

import pytest
import torch

from eval.rollout.rollout import Rollout
from tests import pages
from tests.commands import ROOT, launched
from tests.fakes import Alone
from tests.launched.scalars import CASES
from trainers.config.schema import RolloutConfig
from trainers.train.correction import of_mismatch

# absent if a value fell, as in two steps it may
PERHAPS = {"result/frontier_share"}


@pytest.fixture(scope="module")
def written(base_path, tmp_path_factory):
    """The names that runs write, by case."""
    out = tmp_path_factory.mktemp("scalars") / "names.json"
    return launched("scalars.py", out, ranks=1)


@pytest.fixture(scope="module")
def explained():
    """The names in the first cells of the glossary's tables."""
    text = pages.section(ROOT / "trainers" / "README.md", "## Glossary of metrics")
    cells = re.findall(r"^\| (`.*?) \|", text, re.M)
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


def general(name):
    """The name with the letter k in place of a number, but where the number is its own."""
    fixed = ("eval/reference_pass@1", "result/lowest_pass@1")
    return name if name in fixed else re.sub(r"pass@\d+", "pass@k", name)


@pytest.mark.parametrize("case", CASES)
def test_what_a_run_writes_is_explained(written, explained, case):
    names = {general(x) for kind in written[case].values() for x in kind}
    assert len(names) > 30 and names <= explained, names - explained


@pytest.mark.parametrize("case", CASES)
def test_both_logs_have_the_same_names(written, case):
    metrics, board = (set(written[case][x]) for x in ("metrics", "TensorBoard"))
    assert metrics == {x for x in board if not x.startswith("result/")}


def test_what_is_explained_is_written(written, explained):
    found = {general(x) for run in written.values() for kind in run.values() for x in kind}
    assert explained - {x for x in explained if x.startswith("rollout/")} - found <= PERHAPS


def test_scalars_of_servers_are_explained(explained):
    """Every one, as a run with train.rollouts=vllm writes them."""
    none, mismatch = torch.zeros(1), torch.zeros(1, 2)
    drawn = Rollout([[1]], [[1, 2]], ["a"], none > 0, none, none, None, 1, mismatch)
    found = of_mismatch(drawn, RolloutConfig(correction="truncate"), Alone())
    assert found.keys() == {x for x in explained if x.startswith("rollout/")}
