"""Run by test_engine.py under the launcher: the engine on each ZeRO stage, against autograd."""

import json
import sys

import torch
from torch.distributed import distributed_c10d as collectives

from eval.policy.logprobs import answer_batch, completion_logprobs
from tests.fakes import (
    ANSWERS,
    QUESTIONS,
    WEIGHTS,
    fresh_policy,
    idle,
    reduced_gradient,
    same,
    shares,
)
from trainers.config.schema import Config
from trainers.engine.engine import Engine
from trainers.engine.launcher import start_ranks
from trainers.engine.ranks import Ranks


def check(stage):
    config = Config()
    config.train.zero_stage, config.train.grad_clip = stage, 0.5
    plain, engine = fresh_policy(), Engine(fresh_policy(), config)
    batch = answer_batch(plain, QUESTIONS, ANSWERS)
    (-(completion_logprobs(plain.model, batch).sum(1) @ WEIGHTS) / 5).backward()
    reference = {name: p.grad for name, p in plain.model.named_parameters()}
    scale = max(float(g.abs().max()) for g in reference.values())

    def backward(spoil=1.0):
        mine = [torch.tensor(rows) for rows in shares(engine.world)[engine.rank]]
        weights = [WEIGHTS[rows] * spoil for rows in mine]
        return engine.backward([batch[rows] for rows in mine], weights, 1 / 5, idle(batch))

    found = {"no_metric_before_the_first_step": engine.adam_scale() is None}
    backward()
    errors = [(g - reference[name]).abs().max() for name, g in reduced_gradient(engine).items()]
    found["gradient_error"] = float(max(errors)) / scale
    norm = engine.step(1e-3)
    whole = torch.nn.utils.get_total_norm(list(reference.values()))
    found["norm_error"] = abs(norm / float(whole) - 1)
    after_one = engine.state()
    metric = engine.adam_scale()
    found["metric_error"] = metric_error(metric, after_one["exp_avg_sq"], config)

    found["spoiled_steps"] = []
    for rank, spoil in ((0, float("nan")), (engine.world - 1, float("inf"))):
        backward(spoil if engine.rank == rank else 1.0)
        found["spoiled_steps"] += engine.gather(engine.step(1e-3))
    found["unchanged_by_them"] = same(after_one, engine.state())
    found["policy_is_current"] = policy_matches(engine, after_one)

    backward()
    engine.step(1e-3)
    after_two = engine.state()
    engine.restore(lambda kind, name: after_one[kind][name], steps=1)
    found["restored"] = same(after_one, engine.state())
    found["policy_is_restored"] = policy_matches(engine, after_one)
    again = engine.adam_scale()
    found["metric_restored"] = all(torch.equal(x, again[name]) for name, x in metric.items())
    backward()
    engine.step(1e-3)
    found["continued"] = same(after_two, engine.state())
    total = sum(float(x.double().abs().sum()) for x in after_two["parameters"].values())
    return found | {"total": total, "limits": limits()}


def limits():
    """Seconds that collectives wait: of each group that there is by now, and of the store."""
    groups = [group._get_backend(torch.device("cpu")) for group in collectives._world.pg_map]
    waits = [x.options._timeout for x in groups] + [collectives._get_default_store().timeout]
    return [x.total_seconds() for x in waits]


def metric_error(metric, moments, config):
    """Against Adam's own formula after one step, with the mean of its denominators as the unit."""
    below = {
        name: (v / (1 - config.train.beta_2)).sqrt() + config.train.epsilon
        for name, v in moments.items()
    }
    mean = torch.cat([x.flatten() for x in below.values()]).double().mean()
    return max(
        float((metric[name].cpu() * x.clamp(min=1e-3 * mean) / mean - 1).abs().max())
        for name, x in below.items()
    )


def in_place(total=5):
    """Uneven shares of rows and of lists, the last prompts first, put back by every rank."""
    ranks = Ranks()
    mine = range(ranks.rank, total, ranks.world)[::-1]
    rows = torch.tensor([[i, -i] for i in mine])
    lists = [["rank", ranks.rank, "prompt", i] for i in mine]
    nobodys = ranks.in_place([], torch.zeros(0, 3), 0)
    return ranks.gather(
        {
            "rows": ranks.in_place(mine, rows, total).tolist(),
            "dtype": str(ranks.in_place(mine, rows, total).dtype),
            "lists": ranks.list_in_place(mine, lists, total),
            "nobody's": [*nobodys.shape, *ranks.list_in_place([], [], 0)],
        }
    )


def policy_matches(engine, state):
    with engine.policy() as policy:
        return all(
            torch.equal(p.data.cpu(), state["parameters"][n])
            for n, p in policy.model.named_parameters()
        )


if __name__ == "__main__":
    start_ranks(1)
    results = {str(stage): check(stage) for stage in range(4)} | {"in place": in_place()}
    if torch.distributed.get_rank() == 0:
        with open(sys.argv[-1], "w") as file:
            json.dump(results, file)
