"""The step: tasks without exact values, bf16 under ZeRO, and gradients that are not finite."""

import json

import pytest
import torch

from eval.files import read_lines
from eval.policy.policy import load_policy
from eval.policy.streams import derive_seed
from eval.scores.evaluate import Draws, evaluate
from eval.verify.verifier import Verifier
from tests.commands import ROOT, run
from trainers.config.load import load_config
from trainers.job import Job
from trainers.train.best import Best
from trainers.train.schedules import k_at, learning_rate

TRAIN = str(ROOT / "launch" / "train.py")
PASSK = str(ROOT / "configs" / "pcgrad.yaml")
SMALL = [
    *("train.steps=3", "train.prompts=12", "train.samples=8", "eval.problems=20"),
    *("eval.samples=8", "run.threads=1"),
]

BLIND = """
from eval.tasks.twin import Twin

class Blind:
    verifier, max_new_tokens = Twin.verifier, Twin.max_new_tokens

    def __init__(self):
        self.twin = Twin()

    def __getattr__(self, name):
        if name in ("success", "frontier_share"):
            raise AttributeError(name)
        return getattr(self.twin, name)

Blind.__dataclass_fields__ = {}
"""

APART = """
from dataclasses import dataclass

from eval.tasks.twin import Twin

@dataclass
class Apart(Twin):
    def control(self, seed, step, count):
        return self.training(seed + 1000, step, count)
"""

SPOILT = """
import math
import trainers.train.step
from surgery.rules import RULES

update = trainers.train.step.micro_batches

def spoilt(rollout, weights, *more):
    return update(rollout, weights * math.nan, *more)

trainers.train.step.micro_batches = spoilt
rule = RULES["pcgrad"].function
"""

LATER = """
def rule(weights, geometry, state):
    state["steps"] = state.get("steps", 0) + 1
    return weights, weights / (2 - state["steps"])
"""

# of the last rank: features in step 2, weights in step 3
ON_ONE_RANK = """
import math, os
from trainers.measure import probe
from trainers.train import step
from surgery.rules import RULES

last = int(os.environ.get("RANK", 0)) + 1 == int(os.environ.get("WORLD_SIZE", 1))
features_of, update, steps = probe.prompt_gradients, step.micro_batches, [0]

def spoilt_features(a, features):
    if last and steps[0] == 1:
        features[0, 0] = math.nan
    return features_of(a, features)

def spoilt_update(rollout, weights, *more):
    steps[0] += 1
    if last and steps[0] == 3:
        weights[-1, -1] = math.inf
    return update(rollout, weights, *more)

probe.prompt_gradients, step.micro_batches = spoilt_features, spoilt_update
rule = RULES["pcgrad"].function
"""


def metrics(folder):
    return [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]


def train(cwd, *options, **how):
    return run(TRAIN, "--config", PASSK, *SMALL, *options, cwd=cwd, **how)


@pytest.mark.parametrize("rule", ["pcgrad", pytest.param("floor", marks=pytest.mark.slow)])
def test_decisions_do_not_know_the_exact_values(tmp_path, base_path, rule):
    """But that of the base, by which the force towards it is."""
    (tmp_path / "blind.py").write_text(BLIND)
    options = [f"surgery.rule={rule}", "surgery.gain=0", "surgery.integral_gain=0"]
    options += ["surgery.restore=0"]
    for name, task in (("seeing", "twin"), ("blind", "blind.py:Blind")):
        done = train(tmp_path, *options, f"task.name={task}", f"run.dir={name}")
        assert done.returncode == 0, done.stderr
    seeing, blind = (metrics(tmp_path / name) for name in ("seeing", "blind"))
    assert "exact/pass@1" in seeing[-1] and "exact/pass@1" not in blind[-1]
    for a, b in zip(seeing, blind, strict=True):
        left_out = ("exact/", "time/", "throughput/", "surgery/change_to_base")
        assert {k: v for k, v in a.items() if not k.startswith(left_out)} == {
            k: v for k, v in b.items() if not k.startswith(left_out)
        }
    assert "exact" not in json.loads((tmp_path / "blind" / "summary.json").read_text())
    for name, known in (("seeing", seeing[0]["exact/pass@1"]), ("blind", blind[0]["eval/pass@1"])):
        state = tmp_path / name / "checkpoints" / "step_000003" / "state.json"
        assert json.loads(state.read_text())["rule_state"]["base_pass@1"] == known


def test_control_prompts_are_judged_and_not_trained_on(tmp_path, base_path):
    """A rule that pays no attention to pass@1 trains the same weights, and sees another change."""
    (tmp_path / "apart.py").write_text(APART)
    options = ["surgery.rule=floor", "surgery.gain=0", "surgery.integral_gain=0"]
    logs = {}
    for hold in ("train", "control"):
        task = ["task.name=apart.py:Apart", f"surgery.hold={hold}", f"run.dir={hold}"]
        done = train(tmp_path, *options, *task)
        assert done.returncode == 0, done.stderr
        logs[hold] = metrics(tmp_path / hold)
    for a, b in zip(logs["train"], logs["control"], strict=True):
        for name in a.keys() - {"surgery/change_to_base"}:
            if not name.startswith(("time/", "throughput/")):
                assert a[name] == b[name], name
    a, b = ([x["surgery/change_to_base"] for x in log[1:]] for log in logs.values())
    assert a != b and max(map(abs, b)) < 0.2


def test_a_task_without_control_prompts_is_refused(tmp_path, base_path):
    done = train(tmp_path, "surgery.hold=control", "run.dir=run")
    assert done.returncode == 2
    assert "surgery.hold = control: task twin has no problems that are never" in done.stderr


@pytest.mark.parametrize("stage", [0, pytest.param(3, marks=pytest.mark.slow)])
def test_checkpointing_draws_and_reads_what_the_model_says(tmp_path, base, twin, stage):
    """In train mode transformers drops the cache under it: completions and exact values must be
    those of the models before and after, loaded anew.
    """
    options = ["model.gradient_checkpointing=true", f"train.zero_stage={stage}", "train.steps=1"]
    done = train(tmp_path, *options, "run.dir=run")
    assert done.returncode == 0, done.stdout + done.stderr
    config = load_config(PASSK, SMALL)
    after = load_policy(str(tmp_path / "run" / "model"))
    for name, policy, line in zip(
        ("before", "after"), (base, after), metrics(tmp_path / "run"), strict=True
    ):
        population, problems = twin.success(policy), twin.evaluation(config.eval.problems)
        job, seed = Job(config), derive_seed("eval", config.eval.seed)
        how = job.decoding(1.0, 1.0, job.eval_tokens)
        draws = Draws(config.eval.samples, how, seed)
        expected = evaluate(policy, Verifier("exact"), problems, draws, None, population)
        found = read_lines(tmp_path / "run" / "eval" / f"{name}.jsonl")
        assert [x["responses"] for x in found] == [x["responses"] for x in expected]
        assert [x["p"] for x in found] == pytest.approx([x["p"] for x in expected], abs=1e-5)
        assert line["exact/pass@1"] == pytest.approx(population.pass_at([1])["pass@1"], abs=1e-5)


def test_bfloat16_with_ghost(tmp_path, base_path):
    options = ["surgery.measure=ghost", "train.steps=1"]
    half = ["model.dtype=bfloat16", "train.zero_stage=2", "run.dir=half"]
    done = train(tmp_path, *options, *half)
    assert done.returncode == 0, done.stderr
    full = train(tmp_path, *options, "run.dir=full")
    assert full.returncode == 0, full.stderr
    half, full = (metrics(tmp_path / name)[1] for name in ("half", "full"))
    for key in ("surgery/norm_1_squared", "train/pass@1"):
        assert half[key] == pytest.approx(full[key], rel=0.25)


def test_gradients_that_are_not_finite_stop_the_run(tmp_path, base_path):
    (tmp_path / "spoilt.py").write_text(SPOILT)
    options = ["surgery.rule=spoilt.py:rule", "train.max_bad_steps=2", "run.dir=bad"]
    done = train(tmp_path, *options)
    assert done.returncode == 1
    assert "2 gradients in a row were not finite" in done.stderr
    assert "Traceback" not in done.stderr
    (first,) = [x for x in metrics(tmp_path / "bad") if x["step"] == 1]
    assert first["train/skipped"] == 1 and "train/grad_norm" not in first


def test_a_rule_of_the_users_own_that_fails_later_ends_the_run(tmp_path, base_path):
    """What it keeps of being tried out is not kept: in training its second step is the second."""
    (tmp_path / "later.py").write_text(LATER)
    done = train(tmp_path, "surgery.rule=later.py:rule", "run.dir=bad")
    assert done.returncode == 2
    assert "surgery.rule = later.py:rule: returned NaN or infinite numbers, " in done.stderr
    assert "Traceback" not in done.stderr
    assert [x["step"] for x in metrics(tmp_path / "bad")] == [0, 1]


@pytest.mark.parametrize(
    ("ranks", "stage"),
    [
        (0, 0),
        pytest.param(2, 0, marks=pytest.mark.slow),
        pytest.param(2, 2, marks=pytest.mark.slow),
    ],
)
def test_what_is_not_finite_on_one_rank_skips_the_step_on_all(tmp_path, base_path, ranks, stage):
    """Neither weights nor averages keep anything of it, and the run goes on."""
    (tmp_path / "spoilt.py").write_text(ON_ONE_RANK)
    options = ["surgery.rule=spoilt.py:rule", f"train.zero_stage={stage}", "train.steps=4"]
    options += ["surgery.realised_every=1", "logging.histograms_every=1", "run.dir=run"]
    done = train(tmp_path, *options, ranks=ranks)
    assert done.returncode == 0, done.stdout + done.stderr
    _, *steps = metrics(tmp_path / "run")
    assert [x["train/skipped"] for x in steps] == [0, 1, 1, 0]
    assert ["surgery/dot" in x for x in steps] == [True, False, True, True]
    assert "train/grad_norm" in steps[3] and steps[3]["surgery/lambda"] >= 0
    assert steps[2]["exact/pass@1"] == steps[0]["exact/pass@1"] != steps[3]["exact/pass@1"]
    assert "NaN" not in (tmp_path / "run" / "metrics.jsonl").read_text()


def test_the_best_checkpoint_keeps_its_constraint():
    options = ["train.best_metric=eval/pass@1", "train.best_constraint=eval/pass@8>=0.9"]
    best = Best(load_config(PASSK, options).train)
    steps = [(0.7, 0.8), (0.5, 0.95), (0.4, 0.99), (0.6, 0.9), (0.9, 0.89)]
    taken = [
        best.takes(step, {"eval/pass@1": a, "eval/pass@8": b})
        for step, (a, b) in enumerate(steps, 1)
    ]
    assert taken == [False, True, False, True, False]
    assert best.held == {"step": 4, "metric": "eval/pass@1", "value": 0.6} and best.step == 4
    assert not best.takes(6, {})  # a step without an evaluation


def test_schedules():
    options = ["train.steps=10", "train.warmup_steps=2", "train.lr=1.0"]
    rates = {}
    for schedule in ("constant", "linear", "cosine"):
        config = load_config(PASSK, [*options, f"train.schedule={schedule}"])
        rates[schedule] = [learning_rate(config, step) for step in range(1, 11)]
    assert rates["constant"] == [0.5] + [1.0] * 9
    assert rates["linear"][2:] == pytest.approx([1 - i / 8 for i in range(8)])
    cosine = (1 + torch.cos(torch.pi * torch.arange(8) / 8)) / 2
    assert rates["cosine"][2:] == pytest.approx(cosine.tolist(), abs=1e-6)
    config = load_config(PASSK, ["objective.k_schedule=4@3,1@5"])
    assert [k_at(config, step) for step in range(1, 7)] == [8, 8, 4, 4, 1, 1]
