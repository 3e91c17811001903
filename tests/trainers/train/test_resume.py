"""A run that is given again: finished, lengthened, changed, damaged, on other ranks."""

import json
import os
import shutil

import pytest

from tests.commands import ROOT, run

CONFIG = str(ROOT / "configs" / "pcgrad.yaml")
TRAIN = str(ROOT / "launch" / "train.py")
SMALL = [
    "train.steps=12",
    "train.prompts=16",
    "train.samples=8",
    "train.sampler=informative",
    "train.save_every=5",
    "eval.every=6",
    "eval.problems=20",
    "eval.samples=8",
    "logging.kl_every=4",
    "run.threads=1",
]


def train(folder, *more, cwd, **options):
    return run(TRAIN, "--config", CONFIG, *SMALL, f"run.dir={folder}", *more, cwd=cwd, **options)


def metrics(folder):
    lines = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
    slow = ("time/", "throughput/")
    return [{k: v for k, v in line.items() if not k.startswith(slow)} for line in lines]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, base_path):
    folder = tmp_path_factory.mktemp("runs")
    done = train(folder / "whole", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "whole"


def test_the_folder_holds_what_the_readme_says(whole):
    names = {str(x.relative_to(whole)) for x in whole.rglob("*") if x.is_file()}
    model = "checkpoints/step_000012/model"
    assert "model/model.safetensors" in names
    for name in (
        "config.yaml",
        "metrics.jsonl",
        "summary.json",
        "rollouts.jsonl",
        "eval/before.jsonl",
    ):
        assert name in names
    assert {"eval/after.jsonl", f"{model}/model.safetensors", f"{model}/tokenizer.json"} <= names
    assert not [x for x in names if x.endswith((".bin", ".pt", ".pkl", ".part"))]
    steps = [x["step"] for x in metrics(whole)]
    assert steps == list(range(13))
    summary = json.loads((whole / "summary.json").read_text())
    assert (summary["run"], summary["seed"], summary["k"], summary["steps"]) == ("whole", 0, 8, 12)
    for part in ("before", "after", "change"):
        assert list(summary[part]) == ["pass@1", "pass@2", "pass@4", "pass@8"]
        assert set(summary[part]["pass@8"]) == {"value", "low", "high"}
    assert summary["conflict"]["steps"] == 12
    assert set(summary["exact"]) == {"before", "after", "lowest_pass@1", "frontier_share"}
    record = json.loads((whole / "eval" / "after.jsonl").read_text().splitlines()[0])
    assert {"id", "n", "c", "responses", "p"} <= set(record)


def test_finished_changed_lengthened(whole):
    again = train(whole, cwd=whole.parent)
    assert again.returncode == 0 and "is finished" in again.stdout and "pass@8" in again.stdout
    other = train(whole, "train.lr=1e-4", "objective.k=4", cwd=whole.parent)
    assert other.returncode == 2
    lines = other.stderr.strip().splitlines()
    assert [line.split(" ")[0] for line in lines] == ["objective.k", "train.lr", "eval.k"]
    shorter = train(whole, "train.steps=5", cwd=whole.parent)
    assert shorter.returncode == 2 and "has done 12" in shorter.stderr
    before = (whole / "summary.json").read_text()
    longer = train(whole, "train.steps=14", cwd=whole.parent)
    assert longer.returncode == 0, longer.stderr
    assert (whole / "summary_step_000012.json").read_text() == before
    assert [x["step"] for x in metrics(whole)] == list(range(15))


def test_a_damaged_checkpoint_is_set_aside(whole):
    from trainers.train.checkpoint import latest

    newest, numbers = latest(whole)
    file = newest / "optimizer.safetensors"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    _, earlier = latest(whole)
    assert earlier["step"] < numbers["step"] and not newest.exists()
    assert list(newest.parent.glob(f"damaged_{newest.name}_*"))


def test_a_second_writer_is_refused(whole):
    import fcntl

    with (whole / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = train(whole, "train.steps=20", cwd=whole.parent)
    assert done.returncode == 2 and "another process" in done.stderr


@pytest.mark.slow
def test_curverl_goes_on_with_the_batches_that_it_has_seen(tmp_path, base_path):
    """Its weights are those of the last two batches, before and after a stop."""
    options = ["train.steps=4", "train.save_every=3", "objective.estimator=curverl"]
    options += ["train.sampler=uniform", "surgery.rule=none", "objective.window=2", "eval.every=0"]
    done = train("whole", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    for name in ("checkpoints/step_000004", "model"):
        shutil.rmtree(tmp_path / "cut" / name)
    for name in ("summary.json", "eval/after.jsonl"):
        (tmp_path / "cut" / name).unlink()
    done = train("cut", *options, cwd=tmp_path)
    assert done.returncode == 0 and "going on from step 3" in done.stdout + done.stderr
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")
    whole, cut = (
        json.loads((tmp_path / name / "checkpoints" / "step_000004" / "state.json").read_text())
        for name in ("whole", "cut")
    )
    assert whole["histograms"] == cut["histograms"]
    assert [sum(x) for x in whole["histograms"]] == [16, 16] and len(whole["histograms"][0]) == 9


SIX = [*SMALL, "train.steps=6", "train.zero_stage=3", "eval.every=0", "logging.kl_every=0"]
SIX += ["surgery.measure=ghost", "surgery.metric=adam"]


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory, base_path):
    """Six steps under ZeRO-3, with checkpoints after the fifth and the last."""
    folder = tmp_path_factory.mktemp("ranks")
    done = train(folder / "whole", *SIX, cwd=folder, ranks=2)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "whole"


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 3, 4])
def test_resumed_on_another_number_of_ranks(two_ranks, tmp_path, ranks):
    """A run that was cut after its fifth step; some sizes do not divide by the ranks."""
    from safetensors.torch import load_file

    cut = tmp_path / "whole"
    shutil.copytree(two_ranks, cut)
    for name in ("checkpoints/step_000006", "model"):
        shutil.rmtree(cut / name)
    for name in ("summary.json", "eval/after.jsonl"):
        (cut / name).unlink()
    done = train(cut, *SIX, cwd=tmp_path, ranks=ranks)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "going on from step 5" in done.stdout + done.stderr
    fifth, sixth, again = (
        load_file(run / f"checkpoints/step_00000{step}/optimizer.safetensors")
        for run, step in ((two_ranks, 5), (two_ranks, 6), (cut, 6))
    )
    assert sixth.keys() == again.keys()
    expected, measured = (metrics(run)[6] for run in (two_ranks, cut))
    for name in ("surgery/dot", "surgery/norm_1_squared"):  # in the metric of the restored moments
        assert measured[name] == pytest.approx(expected[name], rel=1e-3)
    for name, x in sixth.items():
        if name.partition("/")[0] in ("parameters", "exp_avg", "exp_avg_sq"):
            assert (again[name] - x).norm() <= 1e-2 * (fifth[name] - x).norm(), name


DIES = """
import os, signal
from pathlib import Path
from surgery.rules import RULES

steps = [0]

def rule(weights, geometry, state):
    steps[0] += 1
    if steps[0] == 6 and os.environ.get("RANK") == "1" and not Path("died").exists():
        Path("died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return RULES["pcgrad"].function(weights, geometry, state)
"""


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 2])
def test_a_rank_that_was_killed_has_changed_nothing(tmp_path, base_path, stage):
    """Rank 1 of two, in the sixth step: the numbers are those of a run in which it lived."""
    (tmp_path / "dies.py").write_text(DIES)
    options = ["surgery.rule=dies.py:rule", f"train.zero_stage={stage}", "train.steps=7"]
    options += ["train.save_every=4", "eval.every=3", "logging.kl_every=2"]
    killed = train(tmp_path / "cut", *options, cwd=tmp_path, ranks=2)
    assert killed.returncode != 0 and "was lost, and so all ranks end" in killed.stderr
    assert [x["step"] for x in metrics(tmp_path / "cut")] == [*range(6)]
    for name in ("cut", "whole"):  # now nobody is killed
        done = train(tmp_path / name, *options, cwd=tmp_path, ranks=2)
        assert done.returncode == 0, done.stdout + done.stderr
        assert ("going on from step 4" in done.stderr) == (name == "cut")
    cut, whole = (tmp_path / name for name in ("cut", "whole"))
    assert metrics(cut) == metrics(whole)
    for name in ("model/model.safetensors", "eval/after.jsonl"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes()


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    done = train(tmp_path / "mine", cwd=tmp_path)
    assert done.returncode == 2 and "holds files but no run" in done.stderr
    assert os.listdir(tmp_path / "mine") == ["thesis.tex"]
