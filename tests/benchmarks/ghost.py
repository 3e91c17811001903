"""Products of all completions' gradients with J_1: ghost, single backwards, TorchJD's autogram.

python tests/benchmarks/ghost.py [--prompts 8 32 128 512] [--rounds 7] [--model DIR]

The completions are drawn from the base of twin, and equal ones are not merged; with `--model` they
are random tokens of `--length` and `--tokens`. Micro-batches have as many rows as the smallest
number of prompts makes, whatever the number. The unit is one forward and backward of all rows.

    probe                       the products alone, J_1 being known
    ghost                       one backward of J_1, and the probe
    ghost, leave-one-out        as a step measures: each half of the prompts against the other's J_1
    a backward each             one backward of J_1, then one for each completion and a dot product
    a backward for each prompt  the same for each prompt: agreements, and nothing of completions
    autogram                    the Gram of all completions, of which the products are sums

Of single backwards 64 are run, and the rest is counted by their mean. Memory is the most that
exists beside the model, a J_1 known before included, over that of the unit. `error` is the largest
difference from single backwards, in units of the largest product.
"""

import argparse
import copy
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from eval.policy.logprobs import PLAIN, Rows, completion_logprobs, pad_batch
from eval.policy.policy import load_policy
from eval.report.tables import table
from eval.rollout.rollout import Decoding
from eval.rollout.sample import sample
from eval.tasks.twin import Twin
from surgery.estimators import rloo
from tests.benchmarks.measuring import in_turn, peak, ratios
from trainers.measure import ghost

try:
    from torchjd.autogram import Engine
except ImportError:
    Engine = None  # type: ignore[assignment,misc]

SAMPLES, RUN = 16, 64  # completions of a prompt; single backwards that are run


@dataclass
class Work:
    """All rows, n for each prompt and those of even prompts first, and their weights in J_1."""

    model: Any
    rows: Rows
    weights: Tensor
    size: int  # of a micro-batch

    def batches(self, rows: slice = slice(None)) -> tuple[Sequence[Rows], Sequence[Tensor]]:
        batch, weights = self.rows[rows], self.weights[rows]
        parts = [slice(i, i + self.size) for i in range(0, len(weights), self.size)]
        return [batch[x] for x in parts], [weights[x] for x in parts]

    def unit(self) -> None:
        for batch, weight in zip(*self.batches(), strict=True):
            (completion_logprobs(self.model, batch).sum(1) @ weight).backward()
        self.model.zero_grad()

    def j_1(self, rows: slice = slice(None)) -> dict[str, Tensor]:
        return ghost.gradient(self.model, *self.batches(rows), PLAIN)

    def probe(self, v: ghost.Direction, rows: slice = slice(None)) -> Tensor:
        batches, _ = self.batches(rows)
        return torch.cat([ghost.probe(self.model, batch, v, PLAIN) for batch in batches])

    def measured(self) -> Tensor:
        return self.probe(self.j_1())

    def leave_one_out(self) -> Tensor:
        """The second half's probe is on the way of its own J_1."""
        half = len(self.weights) // 2
        first = self.j_1(slice(half))
        second = ghost.zeros(self.model, None)
        later = [
            ghost.probed_gradient(self.model, batch, weight, first, second, PLAIN)
            for batch, weight in zip(*self.batches(slice(half, None)), strict=True)
        ]
        return torch.cat([self.probe(second, slice(half)), *later])

    def backwards(self, v: ghost.Direction, together: int, count: int) -> Tensor:
        """The first `count` products of so many rows together, one backward for each."""
        found = []
        for i in range(count):
            rows = slice(i * together, (i + 1) * together)
            g = ghost.gradient(self.model, [self.rows[rows]], [self.weights[rows]], PLAIN)
            found.append(torch.stack([(x * v[name]).sum() for name, x in g.items()]).sum())
        return torch.stack(found)


class Gram:
    """TorchJD's engine on a copy of the model: it taps every forward, others' too."""

    def __init__(self, work: Work):
        self.work = replace(work, model=copy.deepcopy(work.model))
        self.engine = Engine(self.work.model, batch_dim=0)

    def __call__(self) -> Tensor:
        logp = completion_logprobs(self.work.model, self.work.rows).sum(1)
        return self.engine.compute_gramian(logp) @ self.work.weights


def of_twin(prompts: int, size: int) -> Work:
    """Weights are those of rloo; verdicts that give a completion none are left as they are."""
    task = Twin()
    policy = load_policy(task.base_model())
    problems = task.training(0, 1, prompts)
    rollout = sample(policy, [x.prompt for x in problems], SAMPLES, Decoding(4), 1)
    golds = [x.gold for x in problems for _ in range(SAMPLES)]
    right = [a == b for a, b in zip(rollout.texts, golds, strict=True)]
    weights = rloo(torch.tensor(right).double().view(prompts, SAMPLES)) / prompts
    ids = [x for x in rollout.prompts for _ in range(SAMPLES)]
    return _work(policy.model, ids, rollout.completions, weights, policy.pad_id, size)


def of_model(path: str, prompts: int, length: int, tokens: int, size: int) -> Work:
    policy = load_policy(path)
    draw = torch.Generator().manual_seed(0)
    rows, vocabulary = prompts * SAMPLES, policy.model.config.vocab_size
    ids = torch.randint(vocabulary, (rows, length + tokens), generator=draw)
    ids[:, :length] = ids[::SAMPLES, :length].repeat_interleave(SAMPLES, 0)
    weights = rloo(torch.randint(2, (prompts, SAMPLES), generator=draw).double()) / prompts
    both = ids[:, :length].tolist(), ids[:, length:].tolist()
    return _work(policy.model, *both, weights, policy.pad_id, size)


def _work(model: Any, ids: Any, completions: Any, weights: Tensor, pad: int, size: int) -> Work:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    prompts = torch.arange(len(weights))
    order = torch.arange(weights.numel()).view(weights.shape)
    order = torch.cat([order[prompts % 2 == side].flatten() for side in (0, 1)])
    weights = weights.flatten()[order].float().to(device)
    rows = pad_batch(ids, completions, pad, device)[order.to(device)]
    return Work(model.to(device).train(), rows, weights, size)


def compare(work: Work, rounds: int, grams: bool) -> list[list[str]]:
    rows, prompts = len(work.weights), len(work.weights) // SAMPLES
    v = work.j_1()
    few, some = min(RUN, rows), min(RUN, prompts)
    plain = Work(work.model, work.rows, torch.ones_like(work.weights), work.size)
    works: dict[str, Any] = {
        "forward and backward": work.unit,
        "probe": lambda: work.probe(v),
        "ghost": work.measured,
        "ghost, leave-one-out": work.leave_one_out,
        "a backward each": lambda: plain.backwards(v, 1, few),
        "a backward for each prompt": lambda: work.backwards(v, SAMPLES, some),
    }
    of = {"a backward each": rows / few, "a backward for each prompt": prompts / some}
    expected = plain.backwards(v, 1, few).double()

    def error(found: Tensor) -> str:
        return f"{float((found[:few] - expected).abs().max() / expected.abs().max()):.0e}"

    errors = {"probe": error(work.probe(v))}
    if grams and Engine is not None:
        works["autogram"] = gram = Gram(work)
        errors["autogram"] = error(gram().double())
    seconds = in_turn(works, rounds)
    unit, j_1 = (
        seconds["forward and backward"],
        [b - a for a, b in zip(seconds["probe"], seconds["ghost"], strict=True)],
    )
    most = {}
    for name, x in works.items():
        model = x.work.model if isinstance(x, Gram) else work.model
        most[name] = peak(model, x, v.values() if name in {"probe", *of} else ())
    lines = []
    for name, own in seconds.items():
        # single backwards need J_1 as well, which what is timed leaves out
        whole = [of[name] * x + y for x, y in zip(own, j_1, strict=True)] if name in of else own
        memory = f"{most[name] / most['forward and backward']:.2f}"
        cells = [*ratios(whole, unit), ratios(whole, seconds["ghost"])[0], memory]
        lines.append([f"N = {prompts}: {name}", *cells, errors.get(name, "")])
    mean, held = statistics.mean(unit), most["forward and backward"]
    lines[0][0] += f", {1000 * mean:.0f} ms, {held / 2**20:.1f} MiB"
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=int, nargs="+", default=[8, 32, 128, 512])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--autogram", type=int, default=32, help="up to so many prompts")
    parser.add_argument("--threads", type=int, default=0, help="0: torch's own choice")
    parser.add_argument("--model", help="a folder or hub id, instead of the base of twin")
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=64)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    size, lines = min(arguments.prompts) * SAMPLES, []
    for prompts in arguments.prompts:
        shape = prompts, arguments.length, arguments.tokens, size
        work = of_model(arguments.model, *shape) if arguments.model else of_twin(prompts, size)
        lines += compare(work, arguments.rounds, prompts <= arguments.autogram)
    header = ["", "time / unit", "quartiles", "time / ghost", "memory / unit", "error"]
    print(table(header, lines))
    if Engine is None:
        print("autogram: left out, torchjd is not installed")


if __name__ == "__main__":
    main()
