"""Two hosts as `deepspeed --hostfile` starts them: a launcher on each, here both on loopback. Each
has a disk of its own.
"""

import base64
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest
from safetensors.torch import load_file, save_file

from tests.commands import ROOT, free_port

TRAIN, DIAGNOSE = (str(ROOT / "launch" / f"{name}.py") for name in ("train", "diagnose"))
PCGRAD = str(ROOT / "configs" / "pcgrad.yaml")
SMALL = [
    "train.steps=3",
    "train.prompts=8",
    "train.samples=4",
    "objective.k=4",
    "eval.k=4",
    "eval.problems=20",
    "eval.samples=4",
    "logging.kl_every=0",
    "run.threads=1",
    "run.dir=run",
]


class Hosts:
    """A launcher on each of two hosts, the way in which the command of the first starts them."""

    def __init__(self, place, *options, script=TRAIN, config=PCGRAD, second=None):
        world = base64.urlsafe_b64encode(json.dumps({"one": [0], "two": [0]}).encode()).decode()
        self.folders, self.nodes, port = [place / "one", place / "two"], [], free_port()
        for rank, folder in enumerate(self.folders):
            folder.mkdir(exist_ok=True)
            launch = ["-m", "deepspeed.launcher.launch", f"--world_info={world}"]
            meet = [f"--node_rank={rank}", "--master_addr=127.0.0.1", f"--master_port={port}"]
            given = (second or options) if rank else options
            command = [sys.executable, *launch, *meet, script, "--config", config, *given]
            with (folder.parent / f"{folder.name}.txt").open("w") as out:
                node = subprocess.Popen(command, cwd=folder, stdout=out, stderr=out)
            self.nodes.append(node)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for node in self.nodes:
            for process in (
                [*psutil.Process(node.pid).children(True), node] if self.lives(node) else ()
            ):
                process.kill()
            node.wait()

    def lives(self, node):
        return node.poll() is None

    def rank(self, which):
        (process,) = psutil.Process(self.nodes[which].pid).children()
        return process

    def wait(self, seconds):
        codes = [node.wait(timeout=seconds) for node in self.nodes]
        return codes, [x.with_suffix(".txt").read_text() for x in self.folders]


def metrics(folder):
    path = folder / "run" / "metrics.jsonl"
    return [json.loads(x) for x in path.read_text().splitlines()] if path.exists() else []


def test_separate_disks(tmp_path, base_path):
    """Train and resume; only the first host's disk holds the run."""
    for steps in (3, 4):
        options = [*SMALL, "train.zero_stage=3", f"train.steps={steps}"]
        with Hosts(tmp_path, *options) as hosts:
            codes, said = hosts.wait(120)
        assert codes == [0, 0], said
    assert [x["step"] for x in metrics(tmp_path / "one")] == [0, 1, 2, 3, 4]
    assert "going on from step 3" in said[0] and "pass@4" in said[0]
    assert os.listdir(tmp_path / "two") == []
    assert json.loads((tmp_path / "one/run/summary.json").read_text())["world_size"] == 2


@pytest.mark.parametrize("which", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_lost_rank_ends_the_other_host(tmp_path, base_path, which):
    options = [*SMALL, "train.steps=100000", "eval.every=0"]
    with Hosts(tmp_path, *options) as hosts:
        until = time.monotonic() + 120
        while len(metrics(tmp_path / "one")) < 3:
            assert time.monotonic() < until and all(map(hosts.lives, hosts.nodes))
            time.sleep(0.1)
        lost = hosts.rank(which)
        lost.send_signal(signal.SIGKILL)
        start = time.monotonic()
        codes, said = hosts.wait(60)
    assert time.monotonic() - start < 20
    assert 0 not in codes
    assert f"rank {which}" in said[1 - which] and "was lost" in said[1 - which], said
    assert "Traceback" not in said[1 - which]


FINE, WRONG = [*SMALL, "run.dir=other"], [*SMALL, "run.dir=other", "train.lr=0"]
OTHER = [*SMALL, "run.dir=other", "train.lr=1e-4"]


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (FINE, WRONG, "train.lr = 0.0: must be above 0"),
        pytest.param(SMALL, SMALL, "holds files but no run", marks=pytest.mark.slow),
        pytest.param(WRONG, WRONG, "train.lr = 0.0: must be above 0", marks=pytest.mark.slow),
        pytest.param(FINE, OTHER, "train.lr = 0.0001: not what rank 0", marks=pytest.mark.slow),
    ],
    ids=["only the second", "only the first", "both", "each its own"],
)
def test_a_refusal_reaches_the_other_host(tmp_path, base_path, first, second, message):
    """The first host prints the error once, whichever host raised it."""
    (tmp_path / "one" / "run").mkdir(parents=True)
    (tmp_path / "one" / "run" / "thesis.tex").write_text("x")
    with Hosts(tmp_path, *first, second=second) as hosts:
        codes, said = hosts.wait(120)
    assert codes == [2, 2], said
    assert said[0].count(message) == 1 and message not in said[1], said
    assert "Traceback" not in said[0] + said[1]


QUESTION = {"id": 0, "problem": "1+1=", "answer": "2"}
DATA = ["task.name=data", "task.path=data.jsonl", "task.eval_path=data.jsonl"]
DATA += ["task.decontaminate=false", "task.template=plain", "task.prompt='{problem}'"]


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ("weights", "model.path = ./model: its weights are not those of rank 0"),
        pytest.param("data", "task.path = data.jsonl: its problems", marks=pytest.mark.slow),
        pytest.param("lr", "train.lr = 0.0001: not what rank 0", marks=pytest.mark.slow),
    ],
)
def test_a_diagnosis_is_of_the_same_files_on_all_hosts(tmp_path, base_path, made, message):
    """One thing differs on the second host, and no host measures anything."""
    for name in ("one", "two"):
        shutil.copytree(base_path, tmp_path / name / "model")
        question = QUESTION | ({"answer": "3"} if (name, made) == ("two", "data") else {})
        lines = [question | {"id": i} for i in range(8)]
        (tmp_path / name / "data.jsonl").write_text("\n".join(map(json.dumps, lines)))
    if made == "weights":
        file = tmp_path / "two" / "model" / "model.safetensors"
        save_file({n: x + 1 for n, x in load_file(file).items()}, file, {"format": "pt"})
    options = [*SMALL, *DATA, "model.path=./model", "diagnose.prompts=8", "diagnose.samples=4"]
    other = [*options, "train.lr=1e-4"] if made == "lr" else options
    with Hosts(tmp_path, *options, "--out", "out", script=DIAGNOSE, second=other) as hosts:
        codes, said = hosts.wait(120)
    assert codes == [2, 2] and said[0].count(message) == 1, said
    assert "Traceback" not in said[0] + said[1]
    assert not list((tmp_path / "one" / "out").glob("parts/*"))
