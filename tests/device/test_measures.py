"""Log-probabilities, ghost and the probes on the fake device: the numbers of the host."""

import math

import pytest
import torch

from eval.policy.logprobs import (
    Likelihood,
    answer_batch,
    answers_logprobs,
    check_chunks,
    completion_logprobs,
)
from eval.rollout.rollout import Decoding
from eval.rollout.sample import sample
from surgery.estimators import loo, rloo
from tests.fake_device import FakeDevice
from tests.fakes import (
    ANSWERS,
    PROMPTS,
    QUESTIONS,
    WEIGHTS,
    directions,
    error,
    make_probe,
    measurable,
    random_policy,
)
from trainers.measure import ghost

ROUNDING = 1e-5


def on_both(work, *args):
    """The results of work(policy, ...) on the device and on the host."""
    policy = random_policy("llama")
    expected = work(policy, *args)
    with FakeDevice() as device:
        policy.model.to("cuda")
        found = work(policy, *args)
        assert device.operations > 100
    return found, expected


def logprobs(policy, pieces, top_p):
    rows = answer_batch(policy, QUESTIONS, ANSWERS)
    logp = completion_logprobs(policy.model, rows, Likelihood(0.7, top_p), pieces)
    (logp.sum(1) @ WEIGHTS.to(logp)).backward()
    gradients = [p.grad for p in policy.model.parameters()]
    policy.model.zero_grad()
    return [logp.detach(), answers_logprobs(policy.model, rows, 1), *gradients]


@pytest.mark.parametrize(("pieces", "top_p"), [(1, 1.0), (3, 0.9)])
def test_logprobs_and_their_gradient(pieces, top_p):
    found, expected = on_both(logprobs, pieces, top_p)
    assert all(error(x, y) < ROUNDING for x, y in zip(found, expected, strict=True))


def test_a_model_is_checked_for_chunks():
    on_both(check_chunks)


def ghosts(policy):
    model, rows = policy.model, answer_batch(policy, QUESTIONS, ANSWERS)
    v = {name: x.to(policy.device) for name, x in directions(model).items()}
    total, how = ghost.zeros(model, None), Likelihood(0.7)
    weights = WEIGHTS.to(policy.device)
    probed = ghost.probed_gradient(model, rows, weights, v, total, how)
    ghost.check(model, None)
    return [ghost.probe(model, rows, v, how), probed, *total.values()]


def test_ghost():
    found, expected = on_both(ghosts)
    assert all(error(x, y) < ROUNDING for x, y in zip(found, expected, strict=True))


def geometry(policy, measure, needs):
    """What a probe measures, the step really taken among it."""
    rollout = sample(policy, PROMPTS, 6, Decoding(8, features=True), 3)
    correct = (rollout.lengths % 2).double().view(len(PROMPTS), 6)
    batch = measurable(rollout, range(len(PROMPTS)), loo(correct, 4), rloo(correct), correct)
    probe = make_probe(policy, needs, measure=measure)
    found, _ = probe(batch)
    named = {name: p.detach() for name, p in policy.model.named_parameters()}
    probe.watch(
        {name: p.clone() for name, p in named.items()}, ((n, p + 1) for n, p in named.items())
    )
    products = [x for x in vars(found.products).values() if not math.isnan(x)]  # |J_k| if needed
    return [*products, *found.agreement.tolist(), probe.realised(batch)]


@pytest.mark.parametrize("needs", ["nash", "agreement_clip"])
@pytest.mark.parametrize("measure", ["last_layer", "ghost"])
def test_probes(measure, needs):
    found, expected = on_both(geometry, measure, needs)
    assert error(torch.tensor(found), torch.tensor(expected)) < ROUNDING
