"""The sampler on the fake device: the same draws, and how often the host waits for a token."""

import pytest

from eval.policy.policy import Policy
from eval.rollout.rollout import Decoding
from eval.rollout.sample import sample
from tests.fake_device import FakeDevice
from tests.fakes import PROMPTS, error, random_policy

N, SEED = 6, 3
# transformers looks at the mask at each token, and the sampler for ended rows at every eighth
WAITS_PER_TOKEN = 1 + 1 / 8
WAYS = {
    "plain": Decoding(16),
    "features": Decoding(16, temperature=0.7, features=True),
    "cut": Decoding(16, top_p=0.9),
    "greedy": Decoding(16, temperature=0.0),
    "small budget": Decoding(16, token_budget=200),
}


class Endless(Policy):
    """A policy whose completions have no end."""

    end_ids = property(lambda self: [2**30])


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
    """Return how many more waits a token costs, once no two rows share a prefix."""
    few, many = 16, 48
    return (waits(policy, many) - waits(policy, few)) / (many - few)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_draws_are_those_of_the_host(kind, way):
    policy = random_policy(kind)
    expected = sample(policy, PROMPTS, N, WAYS[way], SEED)
    with FakeDevice() as device:
        policy.model.to("cuda")
        found = sample(policy, PROMPTS, N, WAYS[way], SEED)
        names = ("logprobs", "entropy") + ("features",) * WAYS[way].features
        assert all(getattr(found, x).is_cuda for x in names)
    assert found.completions == expected.completions
    # batches lose rows at other tokens than on the host: rounding
    assert all(error(getattr(found, x), getattr(expected, x)) < 1e-5 for x in names)
    assert device.operations > 1000


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_waits_per_token(kind):
    policy = random_policy(kind)
    found = waits_per_token(Endless(policy.model, policy.tokenizer))
    print(f"{kind}: {found:.3f} waits a token")
    assert found <= WAITS_PER_TOKEN
