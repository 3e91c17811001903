"""Logits of any size, of float32 and bfloat16: exact to float64, or refused."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.policy.logprobs import entropies, log_softmax
from eval.rollout.draw import draw
from eval.rollout.rollout import Decoding, SamplingFailed
from eval.rollout.sample import sample
from tests.engines import ENGINES
from tests.fakes import PROMPTS, random_policy
from tests.stub_vllm import servers_for

QUICK = settings(max_examples=60, deadline=None, database=None, derandomize=True)
INF, NAN = math.inf, math.nan
LOGITS = st.sampled_from([0.0, 1e4, -1e4, 3e38, -3e38, -INF, 1e-30]) | st.floats(-50, 50)
ROWS = st.lists(LOGITS, min_size=1, max_size=6) | st.builds(
    lambda x, n: [x] * n, LOGITS, st.integers(1, 6)
)
LARGEST = 1 - 2**-53  # of the uniforms


@QUICK
@given(
    ROWS,
    st.sampled_from([torch.float32, torch.bfloat16]),
    st.sampled_from([1.0, 0.7, 1e-3, 1e3]),
    st.sampled_from([1.0, 0.9, 1e-9]),
)
def test_any_logits(values, dtype, temperature, top_p):
    logits = torch.tensor([values]).to(dtype).requires_grad_()
    scaled = (logits.detach().float() / temperature).double()
    logp = log_softmax(logits, temperature, top_p)
    decoding = Decoding(1, temperature, top_p)
    tokens = [
        int(draw(logits.detach(), decoding, torch.tensor([u]).double()).token)
        for u in (0, 0.5, LARGEST)
    ]
    greedily = replace(decoding, temperature=0)
    greedy = int(draw(logits.detach(), greedily, torch.zeros(1)).token)
    assert all(0 <= x < len(values) for x in [*tokens, greedy])
    if not math.isfinite(float(scaled.max())):  # nothing is likely, or several things are certain
        assert logp.isnan().all()
        return
    expected = torch.log_softmax(scaled, -1)
    if top_p < 1:
        inside = logp.detach() > -INF
        assert inside[0, greedy] and float(expected.exp()[inside].sum()) >= top_p - 1e-6
        expected = torch.log_softmax(scaled.masked_fill(~inside, -INF), -1)
    size = float(scaled[scaled.isfinite()].abs().max())
    for found, exact in zip(logp[0].tolist(), expected[0].tolist(), strict=True):
        assert found == pytest.approx(exact, rel=1e-6, abs=1e-6 * (1 + size))
    drawn = draw(logits.detach(), replace(decoding, features=True), torch.tensor([0.5]).double())
    entropy = float(drawn.entropy)
    assert entropy == pytest.approx(float(entropies(logp.detach())), abs=1e-5)
    exact = float(-(expected.exp() * expected.clamp(min=-1e300)).sum())
    assert entropy == pytest.approx(exact, abs=1e-4) and entropy >= 0
    for token in tokens:
        assert logp[0, token].isfinite()  # nothing of probability 0 is drawn
        (gradient,) = torch.autograd.grad(logp[0, token], logits, retain_graph=True)
        if token == int(drawn.token):
            rounding = 4 * torch.finfo(dtype).eps / temperature
            assert torch.allclose(drawn.gradient, gradient, atol=rounding)
        assert (
            gradient.isfinite().all() and abs(float(gradient.double().sum())) * temperature < 0.02
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [0.0, 1e4])
def test_all_equal_and_far_apart(dtype, scale):
    """Of a model: what is drawn, its log-probability, entropy and features."""
    policy = random_policy("llama")
    policy.model.get_output_embeddings().weight.data.mul_(scale)
    policy.model.to(dtype)
    rollout = sample(policy, PROMPTS, 4, Decoding(5, features=True), seed=0)
    assert rollout.features.isfinite().all()
    if scale:  # certain, but that bfloat16 may make two of them equal
        assert rollout.entropy.min() >= 0 and rollout.entropy.max() <= math.log(2)
        assert rollout.logprobs.max() <= 0
        return
    even = math.log(policy.model.config.vocab_size)
    assert rollout.entropy.tolist() == pytest.approx([even] * 16)
    assert torch.allclose(rollout.logprobs, -even * rollout.lengths)


@pytest.mark.parametrize("sampler", ENGINES)
@pytest.mark.parametrize("broken", [NAN, INF])
def test_a_model_without_probabilities_is_refused(sampler, broken):
    """It would say its last token for ever, and be found to be wrong."""
    policy = random_policy("llama")
    policy.model.get_output_embeddings().weight.data[3] = broken
    with servers_for(policy, sampler) as servers, pytest.raises(SamplingFailed) as error:
        sample(policy, PROMPTS, 2, Decoding(3, sampler=sampler, servers=servers), seed=0)
    assert len(str(error.value).splitlines()) == 1
    if sampler != "continuous":
        assert "after the prompt 'A2?3='; check its weights" in str(error.value)
