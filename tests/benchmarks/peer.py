"""A whole step, surgery on, against TRL's GRPOTrainer on the same work: one model, prompts, number
and length of completions, temperature, float32, threads.

    python -m venv peer-env
    peer-env/bin/pip install trl accelerate torch==.. transformers==..    the versions used here
    python tests/benchmarks/peer.py --peer-python peer-env/bin/python [--config FILE] [key=value ..]

The peer lives in a process of its own. Steps are taken in turn, only one side works at a time, and
the learning rate is next to 0, so that both sides sample from one policy for ever: another than the
base is `model.path=FOLDER`. Blocks of ten steps are compared, the period of what a run looks at now
and then (the step really taken, the KL to the base). Evaluation and the writing of logs and
checkpoints are left out on both sides.

TRL has beta = 0 and so no reference, as few micro-batches as are fast, no gradient checkpointing,
its own defaults otherwise: fused AdamW, `generate` of transformers. `--peer` lays settings of
GRPOConfig over that, such as '{"use_transformers_continuous_batching": true}', which is several
times slower on a CPU. A step of it is the time from the end of the last one to its own end.

What differs: TRL updates all rows, here equal ones are merged and those of weight 0 left out, which
the line "every row" does without. TRL reads each prompt n times to sample, and its objective is
that of GRPO. Completions, their tokens and the right ones are counted on both sides, and other
numbers refused; so a task has to be one whose verdict compares strings, such as twin and chain.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import torch

ROOT = Path(__file__).resolve().parents[2]
WARM_UP, BLOCK = 4, 10  # steps
LR = 1e-12
# positions of the peer's micro-batches at most: on a CPU larger ones are slower
MICRO_BATCH = 2**30 if torch.cuda.is_available() else 2**15
PARTS = ["sampling", "scoring", "measuring", "log-probs", "backward", "optimiser", "KL to base"]
WORK = ["completions", "tokens sampled", "right", "rows updated", "positions updated"]

parts: defaultdict[str, float] = defaultdict(float)  # seconds of the step under way
work: Counter[str] = Counter()  # and what was done in it


def now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.monotonic()


def watched(owner: Any, name: str, part: str, count: Callable[..., dict[str, Any]] | None = None):
    """Add the seconds of `owner.name` to a part, and what `count` says of (result, *arguments)."""
    function = getattr(owner, name)

    def call(*args: Any, **kwargs: Any) -> Any:
        start = now()
        result = function(*args, **kwargs)
        parts[part] += now() - start
        if count:
            work.update(count(result, *args))
        return result

    setattr(owner, name, call)


def sampled(completions: list[list[int]]) -> dict[str, int]:
    return {"completions": len(completions), "tokens sampled": sum(map(len, completions))}


def updated(ids: torch.Tensor) -> dict[str, int]:
    return {"rows updated": len(ids), "positions updated": ids.numel()}


def taken(start: float) -> dict[str, float]:
    """The seconds, parts and work of a step that began at `start`."""
    whole = now() - start
    record = {**parts, "the rest": whole - sum(parts.values()), "step": whole, **work}
    parts.clear()
    work.clear()
    return record


# the peer's process


def serve() -> None:
    """A GRPOTrainer that takes a step whenever it is sent a line, and answers with its record."""
    answers, sys.stdout = sys.stdout, sys.stderr  # what a library prints is no answer
    job = json.loads(sys.stdin.readline())

    import transformers
    import trl
    from accelerate import Accelerator
    from accelerate.optimizer import AcceleratedOptimizer
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    transformers.logging.disable_progress_bar()
    torch.set_num_threads(job["threads"])
    watched(GRPOTrainer, "_generate", "sampling", lambda x, *_: sampled(x[1]))
    watched(GRPOTrainer, "_calculate_rewards", "scoring", lambda x, *_: {"right": int(x.sum())})
    watched(
        GRPOTrainer,
        "_get_per_token_logps_and_entropies",
        "log-probs",
        lambda _, trainer, model, ids, *__: updated(ids),
    )
    watched(Accelerator, "backward", "backward")
    watched(Accelerator, "clip_grad_norm_", "optimiser")
    watched(AcceleratedOptimizer, "step", "optimiser")

    class Turns(transformers.TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.answer({"trl": trl.__version__, **versions()})

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.answer(taken(self.start))

        def answer(self, record: dict[str, Any]) -> None:
            print(json.dumps(record), file=answers, flush=True)
            if not sys.stdin.readline():
                raise SystemExit  # it is over
            self.start = now()

    def exact(completions: list[str], gold: list[str], **_: Any) -> list[float]:
        if job["verifier"] == "boxed":
            completions = [x.rpartition("\\boxed{")[2].partition("}")[0] for x in completions]
        return [float(x.strip() == y) for x, y in zip(completions, gold, strict=True)]

    with tempfile.TemporaryDirectory() as folder:
        args = GRPOConfig(output_dir=folder, **job["settings"])
        data = Dataset.from_dict(job["data"])
        GRPOTrainer(job["model"], exact, args, data, callbacks=[Turns()]).train()


def settings(config: Any, width: int, max_new_tokens: int, steps: int) -> dict[str, Any]:
    """Of GRPOConfig: the same work as `config` asks for, as fast as TRL does it. `width` is that of
    the longest prompt.
    """
    train = config.train
    rows = train.prompts * train.samples
    least = -(-rows * (width + max_new_tokens) // MICRO_BATCH)
    micro_batches = next(x for x in range(least, rows + 1) if rows % x == 0)
    return {
        "per_device_train_batch_size": rows // micro_batches,
        "gradient_accumulation_steps": micro_batches,
        "num_generations": train.samples,
        "max_completion_length": max_new_tokens,
        "temperature": train.temperature,
        "max_grad_norm": train.grad_clip,
        "learning_rate": LR,
        "lr_scheduler_type": "constant",
        "beta": 0.0,
        "num_iterations": 1,
        "bf16": False,
        "gradient_checkpointing": False,
        "disable_dropout": True,
        "model_init_kwargs": {"dtype": "float32", "attn_implementation": config.model.attention},
        "shuffle_dataset": False,
        "max_steps": steps,
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


class Peer:
    """The process of the peer. It is started before this one joins ranks, of which it knows
    nothing.
    """

    def __init__(self, python: str):
        self.process = subprocess.Popen(
            [python, "-I", "-W", "ignore", __file__, "--serve"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )

    def ask(self, what: Any) -> Any:
        assert self.process.stdin and self.process.stdout
        print(json.dumps(what), file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit(f"the peer has ended with exit code {self.process.wait()}")
        return json.loads(answer)

    def end(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


# this process


def watch_ourselves() -> None:
    from deepspeed.runtime.engine import DeepSpeedEngine

    from eval.verify.verifier import Verifier
    from trainers.engine import engine
    from trainers.measure.probe import Probe
    from trainers.train import step
    from trainers.train.reference import Reference

    watched(step, "sample", "sampling", lambda x, *_: sampled(x.completions))
    watched(Verifier, "__call__", "scoring", lambda x, *_: {"right": x.count(True)})
    watched(Probe, "__call__", "measuring")
    watched(Probe, "realised", "measuring")
    watched(
        engine,
        "completion_logprobs",
        "log-probs",
        lambda _, model, batch, *__: updated(batch.input_ids),
    )
    watched(DeepSpeedEngine, "backward", "backward")
    watched(engine.Engine, "step", "optimiser")
    watched(Reference, "__call__", "KL to base")


def every_row(rollout: Any, weights: torch.Tensor, *others: Any) -> Any:
    """In place of `micro_batches`: no rows are merged, none left out."""
    from trainers.engine.batches import micro_batches

    work, _ = others
    # a weight so small that float32 has no normal number for its gradients would be slow
    some = weights.where(weights != 0, 1e-6)
    return micro_batches(rollout, some, work, linear=False)


EVERY_ROW = mock.patch("trainers.train.step.micro_batches", every_row)


def versions() -> dict[str, str]:
    import transformers

    return {"torch": torch.__version__, "transformers": transformers.__version__}


def means(steps: list[dict[str, float]], of: str) -> list[float]:
    """Of each block."""
    return [
        statistics.fmean(x.get(of, 0) for x in steps[i : i + BLOCK])
        for i in range(WARM_UP, len(steps), BLOCK)
    ]


def report(steps: dict[str, list[dict[str, float]]]) -> None:
    from eval.report.tables import table

    def column(name: str, of: str) -> float:
        return statistics.median(means(steps[name], of))

    rows, names = [], list(steps)
    for name in names:
        both = zip(means(steps[name], "step"), means(steps["TRL"], "step"), strict=True)
        low, middle, high = statistics.quantiles([a / b for a, b in both], n=4)
        rows.append([name, f"{middle:.3f}", f"{low:.3f} – {high:.3f}"])
    print(table(["", "step / step of TRL", "quartiles"], rows), "\n")
    for title, lines, digits in (("seconds", [*PARTS, "the rest", "step"], 4), ("work", WORK, 1)):
        rows = [[of, *(f"{column(x, of):.{digits}f}" for x in names)] for of in lines]
        print(table([f"{title}, a step", *names], rows), "\n")
    for of, tolerance in (("completions", 0), ("tokens sampled", 0.05), ("right", 0.05)):
        there = column("TRL", of)
        if any(abs(column(x, of) - there) > tolerance * there for x in names):
            raise SystemExit(f"not the same work, by {of}: the ratios mean nothing")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer-python", required=True, help="of an environment that has trl")
    parser.add_argument("--peer", type=json.loads, default={}, help="settings of GRPOConfig")
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "pcgrad.yaml")
    parser.add_argument("--blocks", type=int, default=8, help="of ten steps")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    arguments = parser.parse_intermixed_args()
    peer = Peer(arguments.peer_python)

    sys.path.insert(0, str(ROOT))
    from trainers.config.load import load_config
    from trainers.engine.launcher import start_ranks
    from trainers.train.trainer import Trainer

    config = load_config(arguments.config, [f"train.lr={LR}", *arguments.overrides])
    start_ranks(config.run.threads)
    trainers = {"here": Trainer(config, None), "here, every row": Trainer(config, None)}
    watch_ourselves()
    first = trainers["here"]
    _, before = first.evaluation()
    for trainer in trainers.values():
        trainer.step.rule_state["base_pass@1"] = before["exact/pass@1"]  # as a run begins

    count, task = WARM_UP + BLOCK * arguments.blocks, first.task
    problems = [
        x for i in range(1, count + 1) for x in task.training(config.seed, i, config.train.prompts)
    ]
    limit = config.train.max_new_tokens or task.max_new_tokens
    with first.engine.policy() as policy:
        width = max(map(len, policy.encode([x.prompt for x in problems])))
    job = {
        "model": first.base_path,
        "verifier": first.verifier.mode,
        "threads": torch.get_num_threads(),
        "data": {"prompt": [x.prompt for x in problems], "gold": [x.gold for x in problems]},
        "settings": {**settings(config, width, limit, count), **arguments.peer},
    }
    print(f"here: {versions()}; there: {peer.ask(job)}; {job['threads']} threads")
    taken(now())  # what evaluation has counted is of no step
    steps: dict[str, list[dict[str, float]]] = {x: [] for x in [*trainers, "TRL"]}
    for step in range(1, count + 1):
        for name, trainer in trainers.items():
            with EVERY_ROW if name == "here, every row" else nullcontext():
                start = now()
                trainer.step(step)
                steps[name].append(taken(start))
        steps["TRL"].append(peer.ask("go"))
    peer.end()
    report(steps)


if __name__ == "__main__":
    serve() if sys.argv[1:] == ["--serve"] else main()
