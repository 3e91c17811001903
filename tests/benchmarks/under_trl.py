"""`twin` under TRL's GRPOTrainer with surgery, beside the trainer of this project.

    PYTHON tests/benchmarks/under_trl.py --out DIR [--configs passk pcgrad] [--seeds 0 1 2]

PYTHON has this project with its extra [trl]. Both sides begin with the same base and train on the
same prompts, with the same optimiser and learning rates; their random numbers differ, so that only
means over seeds are comparable. The values are exact. A run that is finished in DIR is not made
again. The time of a step is the median; of ours it is `time/step`.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
SIDES = {"under TRL": "trl", "here": "here"}


def under_trl(config: Any) -> dict[str, Any]:
    """Train a configuration of twin with TRL; return exact values and seconds per step."""
    import tempfile

    import torch
    import transformers
    from datasets import Dataset
    from trl import GRPOConfig

    from eval.policy.policy import Policy, load_policy
    from trainers.config.schema import SurgeryConfig
    from trainers.integrations.trl import GRPOTrainer
    from trainers.job import Job
    from trainers.train.schedules import learning_rate

    train, task, ks = config.train, Job(config).task, (1, config.objective.k)
    policy = load_policy(task.base_model())
    adam = torch.optim.AdamW(
        policy.model.parameters(), train.lr, (train.beta_1, train.beta_2), train.epsilon, 0.0
    )
    rates = torch.optim.lr_scheduler.LambdaLR(
        adam, lambda step: learning_rate(config, step + 1) / train.lr
    )
    steps = [task.training(config.seed, i + 1, train.prompts) for i in range(train.steps)]
    problems = [problem for step in steps for problem in step]
    data = {"prompt": [x.prompt for x in problems], "gold": [x.gold for x in problems]}

    def exact(model: Any) -> dict[str, float]:
        return task.success(Policy(model, policy.tokenizer), train.temperature).pass_at(ks)

    def verdicts(completions: list[str], gold: list[str], **_: Any) -> list[float]:
        return [float(x.strip() == y) for x, y in zip(completions, gold, strict=True)]

    seconds: list[float] = []
    path: list[dict[str, float]] = []

    class Watch(transformers.TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.start = time.monotonic()

        def on_step_end(self, *_: Any, model: Any = None, **__: Any) -> None:
            seconds.append(time.monotonic() - self.start)
            path.append(exact(model))

    changed = {
        name: x for name, x in asdict(config.surgery).items() if x != getattr(SurgeryConfig(), name)
    }
    with tempfile.TemporaryDirectory() as folder:
        args = GRPOConfig(
            output_dir=folder,
            per_device_train_batch_size=train.prompts * train.samples,
            num_generations=train.samples,
            max_completion_length=task.max_new_tokens,
            temperature=train.temperature,
            scale_rewards="none",
            max_grad_norm=train.grad_clip,
            max_steps=train.steps,
            shuffle_dataset=False,
            gradient_checkpointing=False,
            bf16=False,
            seed=config.seed,
            save_strategy="no",
            logging_steps=1,
            report_to="none",
            disable_tqdm=True,
        )
        trainer = GRPOTrainer(
            policy.model,
            verdicts,
            args,
            Dataset.from_dict(data),
            processing_class=policy.tokenizer,
            optimizers=(adam, rates),
            callbacks=[Watch()],
            objective={"k": config.objective.k, "estimator": config.objective.estimator},
            surgery=changed,
        )
        before = exact(policy.model)
        trainer.surgeon.rule_state["base_pass@1"] = before["pass@1"]  # as a run here begins
        trainer.train()
        logs = trainer.state.log_history
    return {
        "before": before,
        "after": path[-1],
        "lowest_pass@1": min(x["pass@1"] for x in path),
        "seconds": statistics.median(seconds),
        "logs": logs,
    }


def here(folder: Path) -> dict[str, Any]:
    """Return the same of a finished run of launch/train.py."""
    exact = json.loads((folder / "summary.json").read_text())["exact"]
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    seconds = [x["time/step"] for x in lines if "time/step" in x]
    return {**exact, "seconds": statistics.median(seconds)}


def run(side: str, name: str, seed: int, steps: int, out: Path) -> dict[str, Any]:
    """Make a run, unless it is there, in a process of its own."""
    path = out / f"{side}-{name}-{seed}.json"
    keys = [f"seed={seed}", f"train.steps={steps}", "run.threads=1"]
    config = str(ROOT / "configs" / f"{name}.yaml")
    if not path.exists():
        if side == "trl":
            one = [str(Path(__file__)), "--one", config, "--out", str(path), *keys]
            subprocess.run([sys.executable, *one], check=True)
        else:
            folder = out / f"{name}-{seed}"
            command = [str(ROOT / "launch" / "train.py"), "--config", config, f"run.dir={folder}"]
            subprocess.run([sys.executable, *command, *keys], check=True)
            path.write_text(json.dumps(here(folder)))
    return json.loads(path.read_text())


def report(results: Mapping[tuple[str, str], list[dict[str, Any]]], k: int) -> None:
    from eval.report.tables import table
    from eval.scores.intervals import student

    def shown(values: list[float]) -> str:
        x = student(values).interval
        if x["low"] is None:
            return f"{x['value']:+.3f}"
        return f"{x['value']:+.3f} ({x['low']:+.3f} to {x['high']:+.3f})"

    rows = []
    for (name, side), runs in results.items():
        changes = [
            shown([x["after"][metric] - x["before"][metric] for x in runs])
            for metric in ("pass@1", f"pass@{k}")
        ]
        lowest = min(x["lowest_pass@1"] for x in runs)
        rate = statistics.fmean(1 / x["seconds"] for x in runs)
        rows.append([f"`{name}` {side}", *changes, f"{lowest:.3f}", f"{rate:.2f}"])
    heads = ["", "change of pass@1", f"change of pass@{k}", "lowest pass@1", "steps per second"]
    print(table(heads, rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--configs", nargs="+", default=["passk", "pcgrad"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", help=argparse.SUPPRESS)
    arguments = parser.parse_intermixed_args()
    if arguments.one:
        import torch

        from trainers.config.load import load_config

        torch.set_num_threads(1)
        result = under_trl(load_config(arguments.one, arguments.overrides))
        arguments.out.write_text(json.dumps(result))
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    results: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for seed in arguments.seeds:
        for name in arguments.configs:
            for title, side in SIDES.items():
                result = run(side, name, seed, arguments.steps, arguments.out.absolute())
                results.setdefault((name, title), []).append(result)
    report({key: results[key] for key in sorted(results)}, 8)


if __name__ == "__main__":
    main()
