"""One-sided PCGrad: weights and one backward, against two backwards and a projection of copies.

python tests/benchmarks/pcgrad.py [--prompts 128] [--rounds 30]

Both end with the projected gradient of one batch of twin in `.grad`. Ours decides from the features
that the sampler took (what taking them costs is in steps.py) and runs one weighted backward. The
other goes as public code does (github.com/WeiChengTseng/Pytorch-PCGrad): one forward, a backward
for each objective through the retained graph, both gradients copied, flattened, projected and
written back. Equal completions are one row in both, and rows without weight in either objective are
left out. The unit of time and memory is one backward of J_k + J_1, a fixed mixture.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from eval.policy.logprobs import completion_logprobs
from eval.policy.policy import load_policy
from eval.report.tables import table
from eval.rollout.rollout import Decoding, Rollout
from eval.rollout.sample import sample
from eval.tasks.twin import Twin
from surgery.estimators import loo, rloo
from surgery.geometry import Geometry, products, prompt_gradients
from surgery.rules import RULES, apply
from tests.benchmarks.measuring import in_turn, peak, ratios
from trainers.engine.batches import Work, merged, micro_batches, summed

K, SAMPLES, BUDGET = 8, 16, 65536


class Batch:
    """A batch of rollouts with its verdicts."""

    def __init__(self, prompts: int):
        task = Twin()
        policy = load_policy(task.base_model())
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = policy.model.to(device).train()
        self.work = Work(BUDGET, policy.pad_id, device)
        problems = task.training(0, 1, prompts)
        texts = [x.prompt for x in problems]
        self.rollout: Rollout = sample(policy, texts, SAMPLES, Decoding(4, features=True), 1)
        golds = [x.gold for x in problems for _ in range(SAMPLES)]
        right = [a == b for a, b in zip(self.rollout.texts, golds, strict=True)]
        self.correct = torch.tensor(right).double().view(prompts, SAMPLES)
        self.a_k, self.a_1 = loo(self.correct, K) / prompts, rloo(self.correct) / prompts
        self.rule: Any = RULES["pcgrad"].bind({"restore": 0.0, "cap": 1e9})

    def backward(self, advantages: Tensor) -> None:
        self.model.zero_grad()
        rows = micro_batches(self.rollout, advantages, self.work)
        for batch, weight in zip(*rows, strict=True):
            (completion_logprobs(self.model, batch).sum(1) @ weight).backward()

    def mixed(self) -> None:
        self.backward(self.a_k + self.a_1)

    def weighted(self) -> None:
        features = self.rollout.features
        assert features is not None
        g_k, g_1 = (prompt_gradients(a, features.cpu()) for a in (self.a_k, self.a_1))
        geometry = Geometry(self.correct.mean(1), products(g_k, g_1, "loo"))
        decision = self.rule(geometry.rate, geometry, {"base_pass@1": 0.0})
        self.backward(apply(decision, self.a_k, self.a_1))

    def copies(self) -> None:
        parameters = list(self.model.parameters())
        wanted = (self.a_k != 0) | (self.a_1 != 0)
        sums = [[torch.zeros_like(p) for p in parameters] for _ in range(2)]
        for batch, places in merged(self.rollout, wanted, self.work):
            logp = completion_logprobs(self.model, batch).sum(1)
            for objective, a in enumerate((self.a_k, self.a_1)):
                self.model.zero_grad()
                loss = logp @ summed(a.flatten(), places).to(logp)
                loss.backward(retain_graph=objective == 0)
                for x, p in zip(sums[objective], parameters, strict=True):
                    x += p.grad
        g_k, g_1 = (torch.cat([x.flatten() for x in one]) for one in sums)
        product = g_k @ g_1
        if product < 0:
            g_k = g_k - product / (g_1 @ g_1) * g_1
        for p, g in zip(parameters, g_k.split([p.numel() for p in parameters]), strict=True):
            p.grad = g.view_as(p).clone()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=int, nargs="+", default=[32, 128, 512])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=0, help="0: torch's own choice")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    rows = list[Sequence[str]]()
    for prompts in arguments.prompts:
        rows += _compare(Batch(prompts), arguments.rounds, prompts)
    print(table(["", "time / mixture", "quartiles", "memory / mixture"], rows))


def _compare(batch: Batch, rounds: int, prompts: int) -> Sequence[Sequence[str]]:
    works = {
        "fixed mixture": batch.mixed,
        "weights, one backward": batch.weighted,
        "two backwards, copies": batch.copies,
    }
    seconds = in_turn(works, rounds)
    most = {name: peak(batch.model, work) for name, work in works.items()}
    return [
        [
            f"N = {prompts}: {name}",
            *ratios(own, seconds["fixed mixture"]),
            f"{most[name] / most['fixed mixture']:.2f}",
        ]
        for name, own in seconds.items()
    ]


if __name__ == "__main__":
    main()
