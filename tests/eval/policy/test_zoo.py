"""Families of models, two layers of each: the sampler, its features, logits made in pieces,
gradient checkpointing and ghost, against autograd over a plain forward.
"""

import copy
from functools import cache

import pytest
import torch

from eval.policy.logprobs import (
    Likelihood,
    answers_logprobs,
    check_chunks,
    completion_logprobs,
    pad_batch,
)
from eval.policy.policy import ModelError, Policy
from eval.rollout.rollout import Decoding
from eval.rollout.sample import sample
from eval.tasks.twin_base import make_tokenizer
from tests.fakes import batch, by_autograd, directions, error, make_probe
from tests.models import MIXTURES, ZOO, tiny
from trainers.config.schema import Config
from trainers.engine.adapter import make_trainable
from trainers.measure import ghost
from trainers.measure.taps import Unsupported

PROMPTS = ["A2?3=", "J9?", "D5?5=4"]  # ragged
N = 3
NARROW = ("cohere", "cohere 2", "gemma 3", "helium", "gpt-j")  # they compute in float32 inside
ALL = [*ZOO, *MIXTURES]


def exact(kind):
    return 1e-5 if kind in MIXTURES else 1e-6 if kind in NARROW else 1e-10


@cache
def policy_of(kind):
    tokenizer = make_tokenizer()  # experts are multiplied in float32 only
    dtype = torch.float32 if kind in MIXTURES else torch.float64
    return Policy(tiny(kind, len(tokenizer), dtype), tokenizer)


def checkpointing(kind):
    """In train mode, as the trainer has it."""
    config, policy = Config(), policy_of(kind)
    config.model.gradient_checkpointing = True
    policy = Policy(copy.deepcopy(policy.model), policy.tokenizer)
    make_trainable(policy, config)
    return policy


def drawn(policy):
    return sample(policy, PROMPTS, N, Decoding(5, temperature=0.7, features=True), seed=3)


@cache
def sampled(kind):
    """What was drawn of the model, and the batch of it."""
    policy = policy_of(kind)
    rollout = drawn(policy)
    prompts = [x for x in rollout.prompts for _ in range(N)]
    return rollout, pad_batch(prompts, rollout.completions, policy.pad_id, "cpu")


def weighted(model, rows, chunk=0):
    weights = torch.linspace(-1, 2, len(rows.input_ids))
    return ghost.gradient(model, [rows], [weights], Likelihood(0.7, chunk=chunk))


def largest_difference(a, b):
    scale = max(float(x.abs().max()) for x in a.values())
    assert a.keys() == b.keys() and scale > 0
    return max(float((a[name] - b[name]).abs().max()) for name in a) / scale


@pytest.mark.parametrize("kind", ZOO)
def test_ghost_equals_autograd(kind):
    """Over all parameters, completion by completion."""
    model = policy_of(kind).model
    v = directions(model)
    found = ghost.probe(model, batch(), v, Likelihood(0.7))
    assert error(found, by_autograd(model, v)) < exact(kind)


@pytest.mark.parametrize("kind", MIXTURES)
def test_ghost_refuses_experts_and_measures_the_rest(kind):
    """Experts see tokens, not rows: named before any step; without them ghost is exact."""
    policy = policy_of(kind)
    with pytest.raises(Unsupported, match=r"^model\.layers\.0\.mlp\..*: (takes|its first)"):
        make_probe(policy, measure="ghost")
    pattern = "^(?!.*mlp)"
    assert 0.1 < make_probe(policy, measure="ghost", modules=pattern, min_coverage=0.1).coverage < 1
    kept = ghost.chosen(policy.model, pattern)
    v = {name: x for name, x in directions(policy.model).items() if name in kept}
    found = ghost.probe(policy.model, batch(), v, Likelihood(0.7))
    assert error(found, by_autograd(policy.model, v)) < exact(kind)


@pytest.mark.parametrize("kind", ALL)
def test_the_sampler_equals_a_plain_forward(kind):
    """Its log-probabilities, and its features: the gradient by the last hidden states."""
    model, (rollout, rows), taken = policy_of(kind).model, sampled(kind), []

    def take(_, inputs):
        taken.append(inputs[0].detach().requires_grad_())
        return (taken[0],)

    with model.get_output_embeddings().register_forward_pre_hook(take):
        logp = completion_logprobs(model, rows, Likelihood(0.7)).sum(1)
    (features,) = torch.autograd.grad(logp.sum(), taken)
    assert logp.std() > 1  # far from uniform
    assert torch.allclose(rollout.logprobs.double(), logp.double(), rtol=0, atol=2e-5)
    assert error(rollout.features, features.sum(1)) < 1e-5


@pytest.mark.parametrize("kind", ALL)
def test_checkpointing_changes_nothing(kind):
    """Neither what is drawn, nor what is read with a cache, nor the gradient."""
    model, (rollout, rows), policy = policy_of(kind).model, sampled(kind), checkpointing(kind)
    again = drawn(policy)
    assert again.completions == rollout.completions
    assert torch.allclose(again.logprobs, rollout.logprobs, rtol=0, atol=1e-5)
    with torch.no_grad():
        whole = completion_logprobs(model, rows, Likelihood(0.7))
    read = answers_logprobs(policy.model, rows, N, 0.7)
    assert torch.allclose(read, whole, rtol=0, atol=exact(kind))
    assert policy.model.training
    assert largest_difference(weighted(model, rows), weighted(policy.model, rows)) < exact(kind)


@pytest.mark.parametrize("kind", ALL)
def test_pieces_equal_all_at_once_or_are_refused(kind):
    policy, (_, rows) = policy_of(kind), sampled(kind)
    assert rows.pieces(20) > 1
    try:
        check_chunks(policy)
    except ModelError as refusal:
        assert type(policy.model).__name__ in str(refusal) and "set it to 0" in str(refusal)
        return
    whole, parts = (weighted(policy.model, rows, chunk) for chunk in (0, 20))
    assert largest_difference(whole, parts) < exact(kind)


def test_a_model_that_cannot_be_checkpointed_is_refused_by_name(monkeypatch):
    monkeypatch.setattr(type(policy_of("olmo").model), "supports_gradient_checkpointing", False)
    said = "^model.gradient_checkpointing = true: OlmoForCausalLM does not support it; set it to "
    with pytest.raises(ModelError, match=said):
        checkpointing("olmo")
