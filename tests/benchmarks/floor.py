"""The whole step against its floor: the same forwards and backwards, and nothing else.

python tests/benchmarks/floor.py [--config FILE ...] [--rounds 30] [key=value ...]

What the model was called with in a step is called again in turn: the forwards of the sampler, each
with a cache of that length, and the forward and backward of the update, its log-probabilities
included. The floor draws no token, judges nothing, measures nothing, makes no batch and takes no
optimiser step. Evaluation, logs, checkpoints and the looks that a run takes now and then (the step
really taken, the KL to the base) are left out on both sides. ZeRO 0 to 2, for under 3 the model
that samples is another one. Prints how many times as long the step takes, the median and the
quartiles, and where the rest goes: each part of the step in units of the floor, beside what the
floor has of it.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

QUIET = ["surgery.realised_every=0", "logging.kl_every=0", "train.lr=1e-12"]
PARTS = ("sample", "verify", "measure", "update")


class Recorder:
    """The shapes of a step's calls of the model: (rows, columns, columns with those of the cache),
    and the batches of its update.
    """

    def __init__(self, trainer: Any):
        self.sampling: list[tuple[int, int, int]] = []
        self.update: list[Any] = []
        trainer.engine.model.register_forward_pre_hook(self._call, with_kwargs=True)
        backward = trainer.engine.backward

        def recorded(batches, *rest):
            self.update.extend(batches)
            return backward(batches, *rest)

        trainer.engine.backward = recorded

    def _call(self, module: Any, inputs: Any, named: dict[str, Any]) -> None:
        if named["use_cache"]:
            rows, columns = named["input_ids"].shape
            self.sampling.append((rows, columns, named["attention_mask"].shape[1]))


def floor(trainer: Any, sampling: list[tuple[int, int, int]], update: list[Any]) -> list[float]:
    """Seconds of the recorded calls alone: those of the sampler, and the update's."""
    import torch

    from eval.policy.logprobs import Likelihood, completion_logprobs
    from eval.policy.policy import reading

    model, train = trainer.engine.model, trainer.config.train
    seconds = [0.0, 0.0]
    for rows, columns, width in sampling:
        with reading(model) as cache, torch.no_grad():
            inputs = _inputs(model, cache, rows, columns, width)
            start = _now()
            model(**inputs)
            seconds[0] += _now() - start
        del inputs, cache
    for batch in update:
        start = _now()
        logp = completion_logprobs(model, batch, Likelihood(train.temperature))
        torch.autograd.grad(logp.sum(), [p for p in model.parameters() if p.requires_grad])
        seconds[1] += _now() - start
    return seconds


def _inputs(model: Any, cache: Any, rows: int, columns: int, width: int) -> dict[str, Any]:
    """A call of the model whose cache, empty before, holds all but the last columns."""
    import torch

    device = next(model.parameters()).device
    ids = torch.ones(rows, columns, dtype=torch.long, device=device)
    mask = torch.ones(rows, width, dtype=torch.long, device=device)
    if width > columns:
        config = model.config
        heads = getattr(config, "num_key_value_heads", config.num_attention_heads)
        depth = (
            getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        )
        past = torch.zeros(rows, heads, width - columns, depth, dtype=model.dtype, device=device)
        for layer in range(config.num_hidden_layers):
            cache.update(past, past, layer)
    positions = torch.arange(width - columns, width, device=device).expand(rows, -1)
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "position_ids": positions,
        "past_key_values": cache,
        "use_cache": True,
        "logits_to_keep": 1,
    }


def _now() -> float:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.monotonic()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    both = [ROOT / "configs" / name for name in ("passk.yaml", "pcgrad.yaml")]
    parser.add_argument("--config", nargs="+", type=Path, default=both)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    arguments = parser.parse_intermixed_args()

    from eval.report.tables import table
    from tests.benchmarks.measuring import ratios
    from trainers.config.load import load_config
    from trainers.engine.launcher import start_ranks
    from trainers.train.trainer import Trainer

    start_ranks(threads=0)
    trainers = [
        Trainer(load_config(path, [*QUIET, *arguments.overrides]), None)
        for path in arguments.config
    ]
    recorders = [Recorder(x) for x in trainers]
    wholes: list[list[float]] = [[] for _ in trainers]
    floors: list[list[float]] = [[] for _ in trainers]
    parts: list[list[dict[str, float]]] = [[] for _ in trainers]
    for trainer in trainers:
        trainer.step.rule_state["base_pass@1"] = 0.5
    for step in range(1, arguments.rounds + 4):
        for i, trainer in enumerate(trainers):
            calls = recorders[i]
            calls.sampling, calls.update = [], []
            start = _now()
            seconds_of = trainer.step(step).seconds
            whole = _now() - start
            bare = floor(trainer, calls.sampling[:], calls.update[:])
            alone = sum(bare)
            if step > 3:  # the first ones warm up
                wholes[i].append(whole)
                floors[i].append(alone)
                parts[i].append({x: seconds_of.get(x, 0.0) / alone for x in PARTS})
                for name, seconds in zip(("sample", "update"), bare, strict=True):
                    parts[i][-1][f"{name} bare"] = seconds / alone
    rows = []
    for path, whole, alone, split in zip(arguments.config, wholes, floors, parts, strict=True):
        medians = [f"{statistics.median(x[name] for x in split):.2f}" for name in split[0]]
        rows.append([path.stem, *ratios(whole, alone), *medians])
    print(table(["", "step / floor", "quartiles", *parts[0][0]], rows))


if __name__ == "__main__":
    main()
