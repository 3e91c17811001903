"""ZeRO, bf16, checkpointing, LoRA, chunks, offload and several updates, together on two ranks,
against one process that saves nothing; and whole runs with them, resumed.
"""

import hashlib
import json
import shutil

import pytest

from tests.commands import ROOT, launched, run
from tests.fakes import TEXTS
from tests.launched import sums
from tests.launched.scale import BF16, WAYS
from tests.models import save_model


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("models")
    return [save_model(place / kind, kind, TEXTS) for kind in ("llama", "qwen2")]


@pytest.fixture(scope="module")
def results(folders, tmp_path_factory):
    out = tmp_path_factory.mktemp("ranks") / "results.json"
    return launched("scale.py", out, *folders, ranks=2)


@pytest.fixture(
    scope="module", params=[1, pytest.param(2, marks=pytest.mark.slow)], ids=["1 rank", "2 ranks"]
)
def summed(request, tmp_path_factory):
    out = tmp_path_factory.mktemp("sums") / "results.json"
    return request.param, launched("sums.py", out, ranks=request.param)


@pytest.mark.parametrize("way", WAYS)
def test_in_float32_nothing_changes(results, way):
    found = results[way]
    assert found.pop("resumes")
    assert found and all(x < 1e-5 for x in found.values()), found


@pytest.mark.parametrize("way", BF16)
def test_in_bfloat16_nothing_is_added_to_its_own_rounding(results, way):
    """One rounding is 2^-9 at most. Beside a plain bfloat16 run the gradient is rounded again for
    each micro-batch and rank, a few times 0.2 %; all of a forward's and backward's roundings
    together, which the plain run has too, are several times that.
    """
    found = results[way]
    assert found["resumes"]
    assert found["from plain"] < 4 * 2**-9
    assert found["error"] < 1.25 * found["plain error"], found


@pytest.mark.parametrize("way", sums.WAYS)
def test_in_bfloat16_gradients_add_up_in_float32(summed, way):
    """A bfloat16 sum stops where its parts are small. Between ranks that reduce each micro-batch in
    bfloat16, ZeRO 2 and 3, its rounding is left, 2^-9 at most.
    """
    ranks, results = summed
    found, least = results[way], 2**-9 if ranks > 1 and "zero 1" not in way else 1e-6
    assert results["rounded"] > 2 * 2**-9
    assert found["error"] <= least and found["error later"] <= least
    assert set(found["spoiled"]) == {None} and found["kept"]


def test_in_bfloat16_a_small_step_is_seen(summed):
    _, results = summed
    whole = results["realised in float32"]
    assert whole != 0 and results["realised"] == pytest.approx([whole] * 3, rel=0.05)


def test_a_rollout_gathers_once(results):
    """Under ZeRO-3 the weights are gathered on entering, and no token asks for them again."""
    assert results["gathers"]["entering"] > 0 == results["gathers"]["sampling"]


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
