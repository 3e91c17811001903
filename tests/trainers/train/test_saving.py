"""Whole runs that save memory, cut and given again: with an adapter, and with offloaded states."""

import hashlib
import json
import shutil

import pytest

from tests.commands import ROOT, run
from tests.fakes import TEXTS
from tests.models import save_model

TRAIN, CONFIG = str(ROOT / "launch" / "train.py"), str(ROOT / "configs" / "passk.yaml")

SMALL = [
    *("train.steps=4", "train.prompts=8", "train.samples=4", "train.save_every=2", "objective.k=4"),
    *(
        "eval.problems=4",
        "eval.samples=4",
        "eval.k=4",
        "eval.every=0",
        "run.threads=1",
        "train.warmup_steps=0",
    ),
    "train.entropy_coef=0.1",  # a random model solves nothing
]

RUNS = {
    "lora": ["model.lora_rank=4", "train.kl_coef=0.1", "train.updates=2", "train.logprob_chunk=8"],
    "offload": ["train.zero_stage=3", "train.offload=all", "model.gradient_checkpointing=true"],
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("models")
    return [save_model(place / kind, kind, TEXTS) for kind in ("llama", "qwen2")]


def metrics(folder):
    lines = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
    slow = ("time/", "throughput/")
    return [{k: v for k, v in line.items() if not k.startswith(slow)} for line in lines]


@pytest.mark.parametrize(
    "kind", [x if x == "lora" else pytest.param(x, marks=pytest.mark.slow) for x in RUNS]
)
def test_a_run_that_is_cut_ends_as_the_whole(tmp_path, base_path, folders, kind):
    """A LoRA run of the Qwen2, and an offloaded one of the Llama, both given again."""
    folder, path = tmp_path / "run", folders[list(RUNS).index(kind) - 1]

    def train():
        options = [*SMALL, *RUNS[kind], f"model.path={path}", f"run.dir={folder}"]
        done = run(TRAIN, "--config", CONFIG, *options, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        weights = (folder / "model" / "model.safetensors").read_bytes()
        return hashlib.sha256(weights).hexdigest(), metrics(folder)

    whole = train()
    for name in ("checkpoints/step_000004", "model"):
        shutil.rmtree(folder / name)
    (folder / "summary.json").unlink()
    assert train() == whole
    assert whole[1][-1]["train/grad_norm"] > 0
    if kind == "lora":
        from eval.policy.policy import load_policy

        names = load_policy(str(folder / "model")).model.state_dict()
        assert list(names) == list(load_policy(path).model.state_dict())
        drifts = [x["train/kl_to_base"] for x in whole[1][1:]]
        assert drifts[0] == 0 < min(drifts[1:])  # the base is the policy without its adapter
