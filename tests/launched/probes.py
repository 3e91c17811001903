"""Run by test_probe.py under the launcher: probes over ranks and stages against one process."""

import json
import sys

import torch

from eval.policy.policy import load_policy
from eval.rollout.rollout import Decoding
from eval.rollout.sample import sample
from eval.tasks.twin import Twin
from surgery.estimators import loo, rloo
from surgery.rules import RULES, apply
from tests.fakes import Alone, measurable, reduced_gradient
from trainers.config.schema import Config
from trainers.engine.batches import Work, micro_batches
from trainers.engine.engine import Engine
from trainers.engine.launcher import start_ranks
from trainers.measure.probe import Probe

K, N, PROMPTS = 8, 16, 61


def rollout_of(policy, problems, which):
    prompts = [problems[i].prompt for i in which]
    rollout = sample(policy, prompts, N, Decoding(4, features=True), 3, which)
    golds = [problems[i].gold for i in which for _ in range(N)]
    return rollout, [a == b for a, b in zip(rollout.texts, golds, strict=True)]


def flat(gradients):
    return torch.cat([x.double().flatten() for x in gradients.values()])


def check(stage, twin):
    problems = twin.training(0, 0, PROMPTS)
    alone = load_policy(twin.base_model())
    config = Config()
    config.train.zero_stage, config.train.prompts = stage, PROMPTS
    config.surgery.ema, config.surgery.statistic = 0.0, "naive"
    engine = Engine(load_policy(twin.base_model()), config)
    whole, verdicts = rollout_of(alone, problems, range(PROMPTS))
    correct = torch.tensor(verdicts).double().view(PROMPTS, N)
    a_k, a_1 = loo(correct, K), rloo(correct)
    mine = range(engine.rank, PROMPTS, engine.world)
    with engine.policy() as policy:
        part, _ = rollout_of(policy, problems, mine)

    found = {}
    for statistic in ("loo", "naive"):
        for measure in ("last_layer", "ghost"):
            config.surgery.measure, config.surgery.statistic = measure, statistic
            needs = RULES["nash"].needs | RULES["agreement_clip"].needs
            one, many = Probe(config, Alone(alone), needs), Probe(config, engine, needs)
            expected, _ = one(measurable(whole, range(PROMPTS), a_k, a_1, correct, K))
            got, _ = many(measurable(part, mine, a_k, a_1, correct, K))
            scale = float(expected.agreement.abs().max())
            gap = float((got.agreement - expected.agreement).abs().max()) / scale
            key = f"{measure} agreement error"
            found[key] = max(gap, found.get(key, 0.0))
            if statistic == "loo":
                apart = (got.others.agreement - expected.others.agreement).abs().max()
                found[key] = max(float(apart) / scale, found[key])
            x, y = (vars(probe.smooth) for probe in (one, many))
            key = f"{measure} products error"
            gap = max(abs(x[name] - y[name]) for name in x) / max(map(abs, x.values()))
            found[key] = max(gap, found.get(key, 0.0))

    # naive, no margin, no smoothing: the gradient that is really applied is orthogonal to J_1
    decision = RULES["pcgrad"].bind({"restore": 0.0, "cap": 1e9})(correct.sum(1), got, {})
    advantages = apply(decision, a_k, a_1)[list(mine)]
    small, large = (Work(budget, engine.pad_id, engine.device) for budget in (400, 10**6))
    rows = micro_batches(part, advantages, small)
    idle = next(iter(micro_batches(whole, a_1, large)[0]))[:1]
    engine.backward(*rows, 1 / PROMPTS, idle)
    applied = -flat(reduced_gradient(engine))
    j_1 = flat(one._gradient(alone.model, whole, a_1 / PROMPTS))
    found["conflict"] = got.products.dot
    cosine = applied @ j_1 / applied.norm() / j_1.norm()
    found["cosine of the applied gradient with J_1"] = float(cosine)
    return found


if __name__ == "__main__":
    start_ranks(1)
    results = {str(stage): check(stage, Twin()) for stage in range(4)}
    if torch.distributed.get_rank() == 0:
        with open(sys.argv[-1], "w") as file:
            json.dump(results, file)
