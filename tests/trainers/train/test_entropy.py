"""The entropy bonus: exact on a model small enough to enumerate, outside the rule in training."""

import json

import pytest
import torch

from eval.policy.logprobs import completion_logprobs, pad_batch
from eval.rollout.rollout import Rollout
from surgery.estimators import entropy
from tests.commands import ROOT, run
from tests.fakes import random_policy
from trainers.engine.batches import Work, micro_batches

TRAIN, CONFIG = str(ROOT / "launch" / "train.py"), str(ROOT / "configs" / "passk.yaml")
SMALL = [
    *("train.steps=6", "train.prompts=12", "train.samples=8", "train.warmup_steps=0"),
    *("eval.problems=10", "eval.samples=8", "eval.every=0", "run.threads=1"),
]
SILENT = """
import torch

def silent(weights, geometry, state):
    return torch.zeros_like(weights), torch.zeros_like(weights)
"""


@pytest.fixture(scope="module")
def tiny():
    """(policy in float64, prompt, all its completions of at most two tokens)."""
    policy = random_policy("gpt2")  # float64 throughout: Llama's norms compute in float32
    policy.model.double()
    end, size = policy.end_ids[0], policy.model.config.vocab_size
    longer = [[a, b] for a in range(size) if a != end for b in range(size)]
    return policy, policy.encode(["D3?4="])[0], [[end], *longer]


def gradient(policy, value):
    policy.model.zero_grad()
    value.backward()
    return torch.cat([p.grad.flatten().clone() for p in policy.model.parameters()])


def logprobs(tiny):
    policy, prompt, completions = tiny
    batch = pad_batch([prompt] * len(completions), completions, policy.pad_id, "cpu")
    return completion_logprobs(policy.model, batch).sum(1)


def test_unbiased_for_the_gradient_of_the_entropy_of_whole_completions(tiny):
    """Against autograd through the entropy itself, over all pairs of samples (n = 2)."""
    logp = logprobs(tiny)
    p = logp.exp()
    assert float(p.detach().sum()) == pytest.approx(1, abs=1e-12)  # truncated completions included
    expected = gradient(tiny[0], -(p * logp).sum())
    p, pairs = p.detach(), torch.cartesian_prod(logp.detach(), logp.detach())
    chance = (p[:, None] * p).flatten()[:, None]
    mean = (chance * entropy(pairs)).view(len(p), len(p), 2)
    found = gradient(tiny[0], logprobs(tiny) @ (mean[..., 0].sum(1) + mean[..., 1].sum(0)))
    assert (found - expected).abs().max() < 1e-10 * expected.abs().max()


def test_the_entropies_of_positions_alone_would_be_another_gradient(tiny):
    """What the docstring warns of: the first token's effect on the second's entropy is lost."""
    policy = tiny[0]
    logp, size = logprobs(tiny), policy.model.config.vocab_size
    whole = gradient(policy, -(logp.exp() * logp).sum())
    logp = logprobs(tiny)
    joint = logp[1:].view(size - 1, size)  # first tokens other than the end
    first = joint.logsumexp(1)
    second = joint - first[:, None]
    start = -(logp[0].exp() * logp[0] + (first.exp() * first).sum())
    alone = start - first.exp().detach() @ (second.exp() * second).sum(1)
    other = gradient(policy, alone)
    assert (other - whole).abs().max() > 0.05 * whole.abs().max()


def test_equal_completions_are_merged_rightly(tiny):
    """One row for equal answers has the gradient of all of them."""
    policy, prompt, completions = tiny
    answers = [completions[i] for i in (0, 7, 7, 200, 7, 0)]
    batch = pad_batch([prompt] * 6, answers, policy.pad_id, "cpu")
    logp = completion_logprobs(policy.model, batch).sum(1)
    weights = entropy(logp.detach()[None])
    expected = gradient(policy, logp @ weights[0])
    nothing = torch.zeros(6)
    rollout = Rollout([prompt], answers, [""] * 6, nothing.bool(), logp, nothing, None, 6)
    work = Work(10**6, policy.pad_id, torch.device("cpu"))
    batches, sums = micro_batches(rollout, weights, work)
    assert len(batches[0].input_ids) == 3
    found = gradient(
        policy, completion_logprobs(policy.model, batches[0]).sum(1) @ sums[0].double()
    )
    assert (found - expected).abs().max() < 1e-6 * expected.abs().max()  # weights are float32


def test_the_bonus_is_outside_the_rule(tmp_path, base_path):
    """A rule that silences every reward leaves the bonus alone, and that raises the entropy."""
    (tmp_path / "silent.py").write_text(SILENT)
    options = ["surgery.rule=silent.py:silent", "train.entropy_coef=1", "run.dir=run"]
    done = run(TRAIN, "--config", CONFIG, *SMALL, *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    _, *steps = map(json.loads, lines)
    assert all(x["train/no_signal_share"] == 1 for x in steps)  # of the rewards
    entropies = [x["train/sequence_entropy"] for x in steps]
    assert entropies[-1] > entropies[0] + 0.2, entropies
