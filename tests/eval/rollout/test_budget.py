"""The sampler's own budget of tokens."""

import pytest
import torch

from eval.policy.policy import reading
from eval.rollout.budget import CPU_TOKENS, rollout_tokens, sizes, tokens_within
from eval.rollout.rollout import Decoding, SamplingFailed
from eval.rollout.sample import SAMPLERS, sample
from tests.fake_device import MEMORY, FakeDevice
from tests.fakes import PROMPTS, random_policy


def test_the_budget_of_a_cpu():
    assert rollout_tokens(random_policy("llama"), 8) == CPU_TOKENS == 65_536


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_size_of_a_token_is_that_of_the_cache(kind):
    policy = random_policy(kind)
    token, row = sizes(policy)
    with reading(policy.model) as cache, torch.no_grad():
        policy.model(torch.zeros(3, 7, dtype=torch.long), past_key_values=cache, use_cache=True)
    assert 3 * 7 * token == sum(x.keys.nbytes + x.values.nbytes for x in cache.layers)
    assert row == 2 * 4 * policy.model.config.vocab_size


def test_more_memory_more_tokens():
    assert tokens_within(1000, 10, 0, 5) == 100
    assert tokens_within(1000, 10, 50, 5) == 50  # a row of five tokens: 50 + 50 bytes
    assert tokens_within(0, 10, 50, 5) == 1


def test_a_gpu_is_filled_but_for_what_comes_later():
    policy = random_policy("llama")
    with FakeDevice():
        policy.model.to("cuda")
        all_of_it, half = (rollout_tokens(policy, 8, x) for x in (0, MEMORY // 2))
        policy.model.to("cpu")
    assert all_of_it > CPU_TOKENS and half == pytest.approx(all_of_it / 2, rel=0.01)


def test_too_large_a_budget_is_one_line(monkeypatch):
    def draw(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 TiB")

    monkeypatch.setattr(SAMPLERS["cached"], "draw", draw)
    with pytest.raises(SamplingFailed, match=r"train\.rollout_tokens = 99: .*; set half of it"):
        sample(random_policy("llama"), PROMPTS, 2, Decoding(4, token_budget=99), 0)
