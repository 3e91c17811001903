"""Run by test_scale.py under the launcher: many micro-batches in bfloat16 and their sum, and a step
far below a rounding of the weights.
"""

import json
import sys

import torch

from eval.policy.logprobs import answer_batch, completion_logprobs
from eval.rollout.rollout import Decoding
from eval.rollout.sample import sample
from tests.fakes import (
    ANSWERS,
    QUESTIONS,
    fresh_policy,
    idle,
    measurable,
    reduced_gradient,
    same,
)
from trainers.config.schema import Config
from trainers.engine.engine import Engine
from trainers.engine.launcher import start_ranks
from trainers.measure.probe import Probe

MICRO = 40
WAYS = {
    f"zero {stage}, offload {offload}": (stage, offload)
    for stage, offload in (
        *((1, "none"), (1, "optimizer"), (2, "none"), (2, "optimizer")),
        *((3, "none"), (3, "optimizer"), (3, "all")),
    )
}


def new_engine(dtype, stage, offload="none"):
    config, policy = Config(), fresh_policy()
    config.model.dtype, config.train.grad_clip = dtype, 0.0
    config.train.zero_stage, config.train.offload = stage, offload
    config.train.epsilon = 1e-3  # or Adam would make as much of a rounding as of a gradient
    policy.model.to(getattr(torch, dtype))
    return Engine(policy, config), config


class Work:
    """One batch in as many micro-batches as it has rows, and their gradients' sums."""

    def __init__(self):
        self.policy = fresh_policy()
        self.policy.model.to(torch.bfloat16)
        generator = torch.Generator().manual_seed(0)
        rows = torch.randint(len(QUESTIONS), (MICRO,), generator=generator)
        batch = answer_batch(self.policy, QUESTIONS, ANSWERS)
        self.weights = torch.rand(MICRO, generator=generator) + 0.5
        self.batches = [batch[rows[i : i + 1]] for i in range(MICRO)]
        named = dict(self.policy.model.named_parameters())
        self.exact = {n: torch.zeros_like(p, dtype=torch.float32) for n, p in named.items()}
        rounded = {n: torch.zeros_like(p) for n, p in named.items()}
        for one, weight in zip(self.batches, self.weights, strict=True):
            loss = -completion_logprobs(self.policy.model, one).sum() * weight / MICRO
            for n, g in zip(named, torch.autograd.grad(loss, named.values()), strict=True):
                self.exact[n] += g.float()
                rounded[n] += g
        self.rounded_error = self.error(rounded)

    def error(self, sums):
        a, b = (torch.cat([x[n].flatten().float() for n in self.exact]) for x in (sums, self.exact))
        return float((a - b).norm() / b.norm())


def check(work, stage, offload):
    engine, _ = new_engine("bfloat16", stage, offload)
    mine = range(engine.rank, MICRO, engine.world)

    def backward(spoil=1.0):
        weights = [work.weights[i : i + 1] * spoil for i in mine]
        engine.backward([work.batches[i] for i in mine], weights, 1 / MICRO, idle(work.batches[0]))

    before = engine.state()
    backward()
    found = {"error": work.error(reduced_gradient(engine))}
    engine.step(0.0)
    backward(float("nan") if engine.rank == 0 else 1.0)
    found["spoiled"] = engine.gather(engine.step(1.0))
    found["kept"] = same({"parameters": before["parameters"]}, engine.state())
    backward()
    return found | {"error later": work.error(reduced_gradient(engine))}


def realised(work, dtype, stage):
    """<J_1, step> after a step of 1e-6 along all of the work."""
    engine, config = new_engine(dtype, stage)
    probe, mine = Probe(config, engine, frozenset()), range(engine.rank, MICRO, engine.world)
    weights = [work.weights[i : i + 1] for i in mine]
    before = engine.snapshot()
    engine.backward([work.batches[i] for i in mine], weights, 1 / MICRO, idle(work.batches[0]))
    engine.step(1e-6)
    probe.watch(before, engine.weights())
    places = range(engine.rank, len(QUESTIONS), engine.world)
    prompts = [QUESTIONS[i] for i in places]
    rollout = sample(work.policy, prompts, 4, Decoding(3), 0, places)  # the same for every engine
    advantages = torch.linspace(0.1, 1, 4 * len(QUESTIONS), dtype=torch.float64).view(-1, 4)
    return probe.realised(measurable(rollout, places, advantages, advantages))


if __name__ == "__main__":
    start_ranks(1)
    work = Work()
    results = {name: check(work, *way) for name, way in WAYS.items()}
    results["rounded"] = work.rounded_error
    results["realised"] = [realised(work, "bfloat16", stage) for stage in (1, 2, 3)]
    results["realised in float32"] = realised(work, "float32", 0)
    if torch.distributed.get_rank() == 0:
        with open(sys.argv[-1], "w") as file:
            json.dump(results, file)
