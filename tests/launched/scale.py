"""Run by test_scale.py under the launcher: every way to save memory, against plain autograd."""

import json
import sys
from dataclasses import dataclass, replace
from functools import cache

import torch

from eval.policy.logprobs import answer_batch, completion_logprobs
from eval.policy.policy import load_policy
from eval.rollout.rollout import Decoding
from eval.rollout.sample import sample
from surgery.tokens import surrogate
from tests.fakes import ANSWERS, QUESTIONS, WEIGHTS, idle, same, shares
from trainers.config.schema import Config
from trainers.engine.adapter import make_trainable
from trainers.engine.engine import Engine
from trainers.engine.launcher import start_ranks

LR, RATIO_CLIP = 0.05, 0.02  # so that some of the later updates are clipped


@dataclass(frozen=True)
class Way:
    kind: str
    stage: int
    lora: int = 0
    saving: bool = False  # gradient checkpointing, and log-probabilities in chunks
    offload: str = "none"
    dtype: str = "float32"

    def config(self):
        config = Config()
        config.model.dtype, config.model.gradient_checkpointing = self.dtype, self.saving
        config.model.lora_rank, config.train.logprob_chunk = self.lora, 3 * self.saving
        config.train.zero_stage, config.train.offload = self.stage, self.offload
        # a large epsilon: Adam would else make as much of a rounding as of a gradient
        config.train.grad_clip, config.train.epsilon = 0.5, 1.0
        config.train.ratio_clip = RATIO_CLIP
        return config


WAYS = {
    "zero 0, lora": Way("llama", 0, 4),
    "zero 0, saving": Way("qwen2", 0, saving=True),
    "zero 1, lora, saving, offload": Way("llama", 1, 4, True, "optimizer"),
    "zero 2, lora, saving, offload": Way("qwen2", 2, 4, True, "optimizer"),
    "zero 3, saving, offload": Way("qwen2", 3, 0, True, "optimizer"),
    "zero 3, lora, saving, offload all": Way("llama", 3, 4, True, "all"),
}
BF16 = {
    "bf16, zero 1": Way("llama", 1, dtype="bfloat16"),
    "bf16, zero 2, saving": Way("qwen2", 2, 0, True, dtype="bfloat16"),
    "bf16, zero 3, lora, saving": Way("llama", 3, 4, True, dtype="bfloat16"),
}


@cache
def by_autograd(folder, lora, steps, dtype="float32"):
    """How the trainable parameters move by one process, with nothing saved; in bfloat16 as ZeRO
    does it, the optimiser's copy being float32.
    """
    config = Way("", 0, lora, dtype=dtype).config()
    policy = load_policy(folder, dtype)
    make_trainable(policy, config)
    named = {n: p for n, p in policy.model.named_parameters() if p.requires_grad}
    main = {n: p.detach().float().clone() for n, p in named.items()}
    before = {n: x.clone() for n, x in main.items()}
    train = config.train
    adam = torch.optim.AdamW(
        main.values(), LR, (train.beta_1, train.beta_2), train.epsilon, weight_decay=0
    )
    batch, old = answer_batch(policy, QUESTIONS, ANSWERS), None
    for step in range(steps):
        logp = completion_logprobs(policy.model, batch)
        old = logp.detach() if step % 2 == 0 else old
        ascended = surrogate(logp, WEIGHTS, old if step % 2 else None, RATIO_CLIP)
        parts = torch.autograd.grad(-ascended / len(QUESTIONS), list(named.values()))
        for x, part in zip(main.values(), parts, strict=True):
            x.grad = part.float()
        torch.nn.utils.clip_grad_norm_(main.values(), train.grad_clip)
        adam.step()
        for name, p in named.items():
            p.data.copy_(main[name])
    return moved(before, main)


def moved(before, after):
    return torch.cat([(after[name] - before[name]).flatten() for name in before])


def apart(a, b):
    return float((a - b).norm() / b.norm())


class Under:
    """An engine, and the updates of the comparison."""

    def __init__(self, folder, way):
        policy = load_policy(folder, way.dtype)
        self.engine = Engine(policy, way.config())
        self.batch = answer_batch(policy, QUESTIONS, ANSWERS)
        self.before = {n: x.float() for n, x in self.engine.snapshot().items()}

    def update(self, old=()):
        engine = self.engine
        mine = [torch.tensor(rows) for rows in shares(engine.world)[engine.rank]]
        batches, weights = [self.batch[x] for x in mine], [WEIGHTS[x] for x in mine]
        _, found = engine.backward(batches, weights, 1 / len(QUESTIONS), idle(self.batch), old)
        engine.step(LR)
        return found

    def twice(self):
        """The updates of one batch of rollouts."""
        self.update(self.update())
        return self.engine.state()

    def moved(self):
        return moved(self.before, self.engine.state()["parameters"])

    def current(self, state):
        """Whether what samples is what is trained, in the model's dtype."""
        with self.engine.policy() as policy:
            named = dict(policy.model.named_parameters())
            return all(
                torch.equal(named[n].data.cpu(), x.to(named[n].dtype))
                for n, x in state["parameters"].items()
            )


def resumes(under):
    half = under.twice()
    after = under.twice()
    under.engine.restore(lambda kind, name: half[kind][name], steps=under.engine.steps_taken - 2)
    return under.current(half) and same(half, under.engine.state()) and same(after, under.twice())


def check(folder, way):
    under = Under(folder, way)
    found, expected = {"resumes": resumes(under)}, by_autograd(folder, way.lora, 4)
    found["error"] = apart(under.moved(), expected)
    if way.offload != "none":
        without = Under(folder, replace(way, offload="none"))
        without.twice(), without.twice()
        found["error without offload"] = apart(without.moved(), expected)
        found["from without offload"] = apart(under.moved(), without.moved())
    return found


def check_bf16(folder, way):
    """After one update: those that follow are clipped or not by the last bit."""
    under = Under(folder, way)
    under.update()
    float32 = by_autograd(folder, way.lora, 1)
    plain = by_autograd(folder, way.lora, 1, "bfloat16")
    found = {"error": apart(under.moved(), float32), "plain error": apart(plain, float32)}
    return found | {"from plain": apart(under.moved(), plain), "resumes": resumes(under)}


def gathers(folder):
    """Collectives under ZeRO-3: while the weights are gathered, and while they are sampled from."""
    engine = Engine(load_policy(folder), Way("", 3, 4).config())

    def collectives(profile):
        return sum(x.count for x in profile.key_averages() if x.key.startswith("c10d::"))

    with torch.profiler.profile() as entering:
        context = engine.policy()
        policy = context.__enter__()
    with torch.profiler.profile() as sampling:
        sample(policy, QUESTIONS, 2, Decoding(8), 0)
    context.__exit__(None, None, None)
    return {"entering": collectives(entering), "sampling": collectives(sampling)}


if __name__ == "__main__":
    start_ranks(1)
    folders, out = {"llama": sys.argv[-3], "qwen2": sys.argv[-2]}, sys.argv[-1]
    results = {name: check(folders[way.kind], way) for name, way in WAYS.items()}
    results |= {name: check_bf16(folders[way.kind], way) for name, way in BF16.items()}
    results["gathers"] = gathers(folders["llama"])
    if torch.distributed.get_rank() == 0:
        with open(out, "w") as file:
            json.dump(results, file)
