"""launch/toy.py: what it prints and leaves, and what it refuses."""

import json
import time

import pytest

from tests.commands import ROOT, in_process, run

TOY = str(ROOT / "launch" / "toy.py")
SMALL = ("--prompts", "600")
PICTURES = {f"{name}.png" for name in ("agreement", "kernel", "paths", "plane", "training")}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("toy") / "new"
    done = run(TOY, "--out", str(out), *SMALL, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def test_all_printed_figures_match(made):
    out, text = made
    lines = text[: text.index("theory")].splitlines()[2:]
    assert sum(line.endswith(" yes") for line in lines) == 9 and " NO" not in text
    assert all(x["matches"] for x in json.loads((out / "toy.json").read_text())["printed"])


def test_what_it_leaves(made):
    out, _ = made
    assert {x.name for x in out.iterdir()} == PICTURES | {"toy.json"}
    for name in PICTURES:
        assert 5_000 < (out / name).stat().st_size < 150_000, name
    content = json.loads((out / "toy.json").read_text())
    assert content["parameters"]["population"]["prompts"] == 600
    rules = {x["rule"]: x for x in content["rules"]}
    assert rules["none"]["pass@1"] < 0.6 < rules["pcgrad"]["lowest_pass@1"]
    assert all(x["below_frontier"] > -1e-3 for x in rules.values())
    assert content["two prompts"]["k* (4.5)"] < content["two prompts"]["first k in conflict"]
    assert content["population"]["delta (4.4)"] < 0  # the corollary is silent, the conflict there
    assert content["population"]["<grad J_k, grad J_1>"] < 0


def test_another_toy_in_the_same_folder_is_refused(made, tmp_path):
    out, _ = made
    before = (out / "toy.json").read_text()
    done = in_process(TOY, "--out", str(out), *SMALL, "--k", "7", cwd=ROOT)
    assert done.returncode == 2 and "name a new folder" in done.stderr
    assert (out / "toy.json").read_text() == before
    (tmp_path / "toy.json").write_text("[]")
    assert in_process(TOY, "--out", str(tmp_path), *SMALL, cwd=ROOT).returncode == 2


@pytest.mark.parametrize(
    "wrong", [("--delta", "-1"), ("--delta", "nan"), ("--hard", "0"), ("--k", "1")]
)
def test_refusals(wrong, tmp_path):
    done = in_process(TOY, *wrong, "--out", str(tmp_path), cwd=ROOT)
    assert done.returncode == 2 and done.stderr.startswith(f"{wrong[0]} = ")


@pytest.mark.slow
def test_the_whole_toy_takes_less_than_30_seconds(tmp_path):
    start = time.monotonic()
    assert run(TOY, "--out", str(tmp_path), cwd=ROOT).returncode == 0
    assert time.monotonic() - start < 30
