"""The sampler on the fake device: the same draws, and how often the host waits for a token."""

from typing import Any
from unittest import mock

import pytest
from torch import Tensor, nn

from eval.policy.policy import Policy
from eval.rollout import cached, graph
from eval.rollout.rollout import Decoding, Rollout
from eval.rollout.sample import sample
from tests.fake_device import FakeDevice
from tests.fake_graph import FakeGraph
from tests.fakes import PROMPTS, error, random_policy

N, SEED = 6, 3
WAITS_PER_TOKEN = 1 / 16  # to see which rows have ended
WAYS = {
    "plain": Decoding(16),
    "features": Decoding(16, temperature=0.7, features=True),
    "cut": Decoding(16, top_p=0.9),
    "greedy": Decoding(16, temperature=0.0),
    "small budget": Decoding(16, token_budget=200),
    "no graph": Decoding(16, cuda_graph=False),
}


def endless(policy: Policy) -> Policy:
    """Return the policy without an end of text: no completion ends before the limit."""
    ends = policy.end_ids

    def without_end(head: nn.Module, inputs: tuple[Tensor, ...], logits: Tensor) -> Tensor:
        for end in ends:
            logits[..., end] = -1e4
        return logits

    policy.model.get_output_embeddings().register_forward_hook(without_end)
    return policy


def waits(policy: Policy, tokens: int) -> int:
    """Return how often the host waits while completions of so many tokens are drawn."""
    with FakeDevice() as device:
        policy.model.to("cuda")
        device.waits.clear()
        rollout = sample(policy, PROMPTS, N, Decoding(tokens), SEED)
        policy.model.to("cpu")
        assert {len(x) for x in rollout.completions} == {tokens}
        return device.waits.total()


def waits_per_token(policy: Policy) -> float:
    """Return how many more waits a token costs, once the model was looked at."""
    few, many = 16, 48
    _, fewer, more = (waits(policy, tokens) for tokens in (few, few, many))
    return (more - fewer) / (many - few)


@pytest.fixture
def replays(monkeypatch):
    """All replays of graphs."""
    monkeypatch.setattr(graph, "_refused", set())
    spied = mock.patch.object(FakeGraph, "replay", autospec=True, side_effect=FakeGraph.replay)
    with spied as replay:
        yield replay.call_args_list


def on_device(policy: Policy, how: Decoding) -> Rollout:
    with FakeDevice():
        policy.model.to("cuda")
        found = sample(policy, PROMPTS, N, how, SEED)
        assert found.logprobs.is_cuda and found.entropy.is_cuda
        return found


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_draws_are_those_of_the_host(kind, way, replays, capsys):
    policy, how = random_policy(kind), WAYS[way]
    expected = sample(policy, PROMPTS, N, how, SEED)
    assert not replays
    found = on_device(policy, how)
    assert found.completions == expected.completions
    # batches lose rows at other tokens than on the host: rounding
    for name in ("logprobs", "entropy") + ("features",) * how.features:
        assert error(getattr(found, name), getattr(expected, name)) < 1e-5
    assert len(replays) >= 10 * how.cuda_graph and how.cuda_graph == bool(replays)
    assert "cuda_graph" not in capsys.readouterr().err


def test_a_model_that_makes_the_host_wait_is_drawn_from_without_a_graph(replays, capsys):
    def check(body: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
        assert output[0].isfinite().all()

    policy = random_policy("llama")
    policy.model.model.register_forward_hook(check)
    expected = sample(policy, PROMPTS, N, WAYS["plain"], SEED)
    found = on_device(policy, WAYS["plain"])
    assert found.completions == expected.completions and not replays
    assert "LlamaForCausalLM cannot be captured" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_waits_per_token(kind):
    assert waits_per_token(endless(random_policy(kind))) <= WAITS_PER_TOKEN


def test_more_waits_are_seen():
    """Where shapes change, transformers looks at the mask of each token."""
    with mock.patch.object(cached, "can_be_static", lambda policy: False):
        assert waits_per_token(endless(random_policy("llama"))) >= 1
