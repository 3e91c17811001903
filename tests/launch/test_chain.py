"""Training on `chain`: answers of many tokens, judged by what stands in the box."""

import json
from dataclasses import asdict

import pytest

from eval.report.runs import find_runs
from eval.tasks.chain_base import SIZES, ChainRecipe, base_folder
from eval.verify.answers import last_box
from tests.commands import ROOT, run

ABLATE, TRAIN = (str(ROOT / "launch" / f"{name}.py") for name in ("ablate", "train"))
CONFIGS = [str(ROOT / "configs" / "chain" / f"{x}.yaml") for x in ("passk", "pcgrad")]
SMALL = "train.steps=2 train.prompts=6 train.samples=8 eval.problems=10 eval.samples=8"


def test_a_run_on_a_base_that_knows_little(tmp_path):
    shape = asdict(SIZES["small"]) | {"steps": 20, "batch": 16, "width": 32}
    options = [f"model.path={base_folder(ChainRecipe(**shape))}", "run.dir=run", "run.threads=1"]
    done = run(TRAIN, "--config", CONFIGS[1], *options, *SMALL.split(), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    records = [
        json.loads(x) for x in (tmp_path / "run" / "eval" / "after.jsonl").read_text().splitlines()
    ]
    assert len(records) == 10 and {x["group"] for x in records} == {"easy", "hard"}
    for record in records:  # what a box holds is the answer, and a text without one has none
        read = {last_box(x) for x in record["responses"]} - {""}
        assert set(record["wrong"]) == read - {record["gold"]}
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["train/length"] > 8 and "surgery/cosine" in last


@pytest.mark.slow
def test_pass_at_8_costs_pass_at_1_and_pcgrad_does_not(tmp_path):
    done = run(
        ABLATE, "--configs", *CONFIGS, "--seeds", "100", "--out", "out", cwd=tmp_path, timeout=3000
    )
    assert done.returncode == 0, done.stdout + done.stderr
    change = {x.summary["run"]: x.summary["change"] for x in find_runs([tmp_path / "out"])}
    assert change["passk"]["pass@8"]["low"] > 0 and change["passk"]["pass@1"]["high"] < 0
    assert change["pcgrad"]["pass@8"]["low"] > 0 and change["pcgrad"]["pass@1"]["low"] > -0.03
