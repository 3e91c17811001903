"""The sampler `vllm` with a real server, started by launch/serve.py.

They need a Python with vLLM in PASSK_SURGERY_VLLM_PYTHON; launch/README.md says how to make
its environment. On a CPU its attention wants heads of 32, so `twin` gets a base with two heads.
"""

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
import transformers as hf

from eval.files import read_json, read_lines
from eval.policy.policy import Policy, load_policy
from eval.rollout.rollout import Decoding, Rollout, SamplingFailed, Servers
from eval.rollout.sample import sample
from eval.scores.intervals import student
from eval.tasks.twin import Twin
from eval.tasks.twin_base import TwinRecipe, base_folder, make_tokenizer
from tests.commands import ROOT, free_port, run, serving
from tests.fakes import surprise
from tests.rounding import rounding
from trainers.config.schema import Config
from trainers.engine.adapter import make_trainable
from trainers.engine.sync import Sync
from trainers.job import BOUNDS

PYTHON = os.environ.get("PASSK_SURGERY_VLLM_PYTHON", "")
MISSING = "no PASSK_SURGERY_VLLM_PYTHON: launch/README.md says how to make one"
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not PYTHON, reason=MISSING)]

TRAIN, SCORE, DIAGNOSE = (
    str(ROOT / "launch" / f"{name}.py") for name in ("train", "score", "diagnose")
)
PCGRAD, PASSK = (str(ROOT / "configs" / f"{name}.yaml") for name in ("pcgrad", "passk"))
MEAN_ROUNDING = 1e-6  # of a token's log-probability in float32
LONGEST = 400  # tokens of an answer that the server has room for
SMALL = [
    *("train.steps=5", "train.prompts=24", "train.samples=8", "eval.problems=40", "eval.k=4"),
    *("eval.samples=8", "eval.every=0", "train.save_every=1", "train.warmup_steps=0"),
    *("run.threads=1", "run.dir=run"),
]


def server(cwd: Path, model: str, port: str, *more: str):
    """A server with room for long prompts."""
    options = ["--python", PYTHON, "--port", port, f"model.path={model}", *more]
    return serving(cwd, PCGRAD, *options, f"eval.max_new_tokens={LONGEST}")


@pytest.fixture(scope="module")
def path() -> str:
    return base_folder(TwinRecipe(heads=2))


@pytest.fixture(scope="module")
def keys(tmp_path_factory, path) -> Iterator[list[str]]:
    with server(tmp_path_factory.mktemp("server"), path, free_port()) as (found, _):
        yield found


@pytest.fixture
def sync(keys, tmp_path) -> Sync:
    return of_server(keys, tmp_path)


def of_server(keys: list[str], folder: Path, bound: float = BOUNDS["float32"]) -> Sync:
    """What gives weights to the server, without a run around it."""
    url = keys[1].partition("[")[2].rstrip("]")
    return Sync(Servers((url,), 300.0, bound), folder, None)


def drawn(policy: Policy, sync: Sync, prompts: list[str], n: int, limit: int = 4, **how):
    decoding = Decoding(limit, **how, sampler="vllm", token_budget=2**14, servers=sync.servers)
    return sample(policy, prompts, n, decoding, seed=5)


def moved(path: str, by: float = 0.02) -> Policy:
    policy = load_policy(path)
    torch.manual_seed(0)
    with torch.no_grad():
        for p in policy.model.parameters():
            p.add_(by * torch.randn_like(p))
    return policy


def metrics(folder: Path) -> list[dict]:
    return [x for x in read_lines(folder / "metrics.jsonl") if x["step"]]


def close(lines: list[dict]) -> bool:
    return max(x["rollout/mismatch_mean"] for x in lines) < MEAN_ROUNDING


def adapted(path: str) -> Policy:
    policy, config = load_policy(path), Config()
    config.model.lora_rank = 4
    make_trainable(policy, config)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, p in policy.model.named_parameters():
            if ".lora_" in name:
                p.add_(0.05 * torch.randn_like(p))
    return policy


def in_roundings(policy: Policy, rollout: Rollout) -> torch.Tensor:
    """Each token's mismatch, in units of the least that two programs in float32 are apart."""
    _, spread = rounding(policy, rollout.prompts, rollout.completions)
    inside = torch.arange(spread.shape[1]) < rollout.lengths[:, None]
    return rollout.mismatch[inside] / (2**0.5 * spread[inside])


def train(cwd: Path, keys: list[str], path: str, *more: str, config: str = PCGRAD, ranks: int = 0):
    options = [f"model.path={path}", *SMALL, *keys, *more]
    return run(TRAIN, "--config", config, *options, cwd=cwd, ranks=ranks, timeout=900)


# -- one draw -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("repeats", "count"), [(1, 12), (10, 8), (60, 4)])
def test_weights_a_then_b_then_a(sync, path, repeats, count):
    """Prompts of 5, 50, and 300 tokens, which blocks of the prefix cache hold; both sides round.

    Neither side may err more than by one rounding of each stored value, which alone moves some
    tokens by more than 1e-5.
    """
    prompts = [x.prompt * repeats for x in Twin().evaluation(count)]
    policies = {"a": load_policy(path), "b": moved(path), "adapter": adapted(path)}
    for name in ("a", "b", "adapter", "a"):
        sync(policies[name], name)
        for _ in range(2):  # the second time from the prefix cache
            found = drawn(policies[name], sync, prompts, 8)
            assert found.mismatch.abs().mean() < MEAN_ROUNDING
        apart = in_roundings(policies[name], found)
        print(f"{name}: {apart.square().mean().sqrt():.2f} {apart.abs().max():.1f}")
        assert apart.square().mean().sqrt() < 1 and apart.abs().max() < 6
    with pytest.raises(SamplingFailed, match=r"^rollout\.mismatch = 0\.001: the servers' log-prob"):
        drawn(policies["b"], sync, prompts, 8)
    assert {x.name for x in sync.folder.iterdir()} == {".lock"}


def test_draws_are_those_of_the_seed(sync, path):
    """The same again, alone or among others; other ones for equal prompts."""
    policy, prompts = load_policy(path), [x.prompt for x in Twin().evaluation(6)]
    sync(policy, 0)
    first = drawn(policy, sync, prompts * 2, 32).completions
    assert drawn(policy, sync, prompts * 2, 32).completions == first
    assert drawn(policy, sync, prompts, 32).completions == first[: 6 * 32]
    assert first[: 6 * 32] != first[6 * 32 :]


def exact_texts(policy: Policy, prompt: str, temperature: float, top_p: float):
    """The probability of each completion of at most two tokens, by text."""
    end = policy.end_ids[0]

    def after(ids: list[int]) -> torch.Tensor:
        logits = policy.model(torch.tensor([ids])).logits[0, -1].double()
        p = torch.softmax(logits / temperature, -1)
        order = p.argsort(descending=True)
        kept = order[: int((p[order].cumsum(0) < top_p).sum()) + 1]
        inside = torch.zeros_like(p)
        inside[kept] = p[kept]
        return inside / inside.sum()

    (ids,) = policy.encode([prompt])
    exact = {}
    with torch.no_grad():
        for first, p in enumerate(after(ids).tolist()):
            if first == end:
                exact[(first,)] = p
            elif p > 0:
                second = after([*ids, first]).tolist()
                exact |= {(first, token): p * q for token, q in enumerate(second)}
    return exact


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.6, 1.0), (1.0, 0.8)])
def test_completions_follow_the_model(sync, path, temperature, top_p):
    """Against the enumeration; a warmer distribution is told from it."""
    policy, n = moved(path, 0.1), 1_500
    prompts = ["A2?", "B3?4=7C5?6=30D7?8=15A2?3=", "="]
    sync(policy, 0)
    found = drawn(policy, sync, prompts, n, limit=2, temperature=temperature, top_p=top_p)
    worst = []
    for i, prompt in enumerate(prompts):
        completions = found.completions[i * n : (i + 1) * n]
        exact = exact_texts(policy, prompt, temperature, top_p)
        assert surprise(completions, exact, least=5) < 3.72
        warmer = exact_texts(policy, prompt, temperature * 1.4, 1.0)
        worst.append(surprise(completions, warmer, least=5))
    assert max(worst) > 3.72


# -- whole commands -------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [[], ["model.lora_rank=4", "train.lr=0.01"]], ids=["all", "lora"])
def test_training_renews_the_weights(tmp_path, keys, path, more):
    """The log-probabilities are those of the policy in each step, though the policy moves."""
    done = train(tmp_path, keys, path, *more)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = metrics(tmp_path / "run")
    assert len(lines) == 5 and close(lines)
    before, after = load_policy(path), load_policy(str(tmp_path / "run" / "model"))
    with torch.no_grad():
        rows = torch.tensor(before.encode(["A2?3=", "J9?4="]))
        distance = before.model(rows).logits - after.model(rows).logits
    assert distance.abs().max() > 0.1  # what stale weights would show


HALF = ["model.dtype=bfloat16", "train.zero_stage=1"]


def distance(policy: Policy, sync: Sync, prompts: list[str], limit: int) -> float:
    """The mean mismatch of a token with the server, whichever weights it holds."""
    found = drawn(policy, sync, prompts, 8, limit)
    return float(found.mismatch.abs().sum() / found.lengths.sum())


def test_bfloat16_with_truncated_weights(tmp_path, path):
    """All draws of a run are nearer than the bound; from there its first weights are beyond it."""
    with server(tmp_path, path, free_port(), "--memory", "0.25", *HALF) as (keys, _):
        done = train(tmp_path, keys, path, *HALF, "rollout.correction=truncate", "train.steps=20")
        assert done.returncode == 0, done.stdout + done.stderr
        first = load_policy(path)
        first.model.bfloat16()
        prompts = [x.prompt for x in Twin().evaluation(48)]
        old = distance(first, of_server(keys, tmp_path / "sync", math.inf), prompts, 4)
    lines = metrics(tmp_path / "run")
    assert len(lines) == 20
    means = [x["rollout/mismatch_mean"] for x in lines]
    print(f"means {min(means):.2g} to {max(means):.2g}, old weights {old:.2g}")
    assert min(means) > 100 * MEAN_ROUNDING and max(means) < BOUNDS["bfloat16"] / 2 < old / 4
    for x in lines:
        assert abs(x["rollout/weight_mean"] - 1) < 0.01 and x["rollout/weight_max"] <= 2


def test_the_bound_of_bfloat16(tmp_path):
    """Rounding stays below it, a large step that is not handed over does not; 25 M weights."""
    torch.manual_seed(0)
    size = {"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 8}
    shape = {"vocab_size": len(make_tokenizer()), "num_attention_heads": 8}
    model = hf.LlamaForCausalLM(hf.LlamaConfig(**size, **shape)).bfloat16().eval()
    policy, folder = Policy(model, make_tokenizer()), tmp_path / "model"
    for x in (model, policy.tokenizer):
        x.save_pretrained(folder)
    prompts = [x.prompt * 10 for x in Twin().evaluation(8)]
    with server(tmp_path, str(folder), free_port(), *HALF) as (keys, _), torch.no_grad():
        sync, found = of_server(keys, tmp_path / "sync", math.inf), {}
        for scale in (1, 10):  # logits near 0, and of the size that they have in trained models
            model.lm_head.weight.mul_(scale)
            sync(policy, scale)
            found[f"head x {scale}"] = distance(policy, sync, prompts, 64)
        for p in model.parameters():
            p.add_(1e-3 * torch.randn_like(p).sign())
        moved = distance(policy, sync, prompts, 64)
    print(f"{found}, moved {moved:.2g}")
    assert max(found.values()) < BOUNDS["bfloat16"] / 2 < moved / 4


def test_two_ranks_of_zero_3_on_two_servers(tmp_path, keys, path):
    with server(tmp_path, path, free_port()) as (second, _):
        urls = [x[1].partition("[")[2].rstrip("]") for x in (keys, second)]
        both = [keys[0], f"rollout.urls=[{','.join(urls)}]", keys[2]]
        done = train(tmp_path, both, path, "train.zero_stage=3", ranks=2)
    assert done.returncode == 0, done.stdout + done.stderr
    assert close(metrics(tmp_path / "run"))


def test_score_and_diagnose(tmp_path, keys, path):
    model, few = f"model.path={path}", ["eval.problems=40", "eval.samples=16"]
    done = run(SCORE, "--config", PASSK, "--out", "score", model, *few, *keys, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = read_json(tmp_path / "score" / "summary.json", dict)["scores"]["pass@1"]
    assert found["low"] <= 0.65 <= found["high"]
    few = ["diagnose.prompts=40", "diagnose.samples=8", "diagnose.measure=last_layer"]
    done = run(DIAGNOSE, "--config", PASSK, "--out", "out", model, *few, *keys, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(read_lines(tmp_path / "out" / "prompts.jsonl")) > 20


def test_a_server_killed_in_the_middle_and_started_again(tmp_path, path):
    port, command = free_port(), [sys.executable, TRAIN, "--config", PCGRAD]
    with server(tmp_path, path, port) as (keys, process):
        options = [f"model.path={path}", *SMALL, *keys, "train.steps=60", "rollout.timeout=20"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        training = subprocess.Popen([*command, *options], cwd=tmp_path, **pipes)
        log = tmp_path / "run" / "metrics.jsonl"
        while training.poll() is None and (not log.exists() or len(metrics(log.parent)) < 3):
            time.sleep(0.1)
        (own,) = [x for x in psutil.Process(process.pid).children() if "--model" in x.cmdline()]
        own.kill()
        out, errors = training.communicate(timeout=300)
    assert training.returncode == 1, out + errors
    assert "Traceback" not in errors
    assert errors.splitlines()[-1].startswith(f"run: rollout.urls = http://127.0.0.1:{port}: ")
    assert errors.splitlines()[-1].endswith("the same command goes on")
    reached = metrics(log.parent)[-1]["step"]
    assert 3 <= reached < 60
    with server(tmp_path, path, port):
        done = run(*command[1:], *options, f"train.steps={reached + 3}", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"run: going on from step {reached}" in done.stderr
    lines = metrics(log.parent)
    assert [x["step"] for x in lines] == list(range(1, reached + 4)) and close(lines)


@pytest.mark.parametrize("config", [PCGRAD, PASSK], ids=["pcgrad", "passk"])
def test_runs_end_where_those_of_cached_end(tmp_path, keys, path, config):
    """Exact values after 60 steps, paired by seed over five seeds.

    They must not differ in any direction, with intervals that would show a tenth.
    """
    ends: dict[str, list[dict[str, float]]] = {"cached": [], "vllm": []}
    for seed in range(200, 205):
        for name, chosen in (("cached", []), ("vllm", keys)):
            options = [
                "train.steps=60",
                "train.prompts=48",
                "train.warmup_steps=20",
                f"seed={seed}",
            ]
            options += [f"run.dir={name}{seed}", "train.save_every=0"]
            done = train(tmp_path, chosen, path, *options, config=config)
            assert done.returncode == 0, done.stdout + done.stderr
            summary = json.loads((tmp_path / f"{name}{seed}" / "summary.json").read_text())
            ends[name].append(summary["exact"]["after"])
    for metric in ("pass@1", "pass@4"):
        pairs = zip(ends["cached"], ends["vllm"], strict=True)
        apart = student([a[metric] - b[metric] for a, b in pairs]).interval
        print(f"{metric}: cached less vllm {apart}")
        assert apart["low"] <= 0 <= apart["high"] and apart["high"] - apart["low"] < 0.2
