"""Run by test_trl.py with a Python that has TRL: gradients, resuming and refusals under TRL.

under_trl.py here BATCH           one batch of launch/train.py and its gradient for each rule
under_trl.py gradients BATCH OUT  the gradients of the same batch under TRL, on any processes
under_trl.py resume FOLDER OUT    a run that is resumed, and one that is not
"""

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset
from trl import GRPOConfig

from eval.errors import Refusal
from eval.policy.policy import load_policy
from eval.tasks.twin import Twin
from tests.fakes import reduced_gradient
from trainers.config.load import load_config
from trainers.engine.launcher import start_ranks
from trainers.integrations.trl import STATE, GRPOTrainer
from trainers.train.trainer import Trainer

ROOT = Path(__file__).resolve().parents[2]
K, N, PROMPTS, BASE = 4, 8, 24, 0.7
RULES = ("none", "mix", "pcgrad", "agreement_clip")
# loss types and levels of importance sampling under which the update is ours
LOSSES = (("dapo", "token"), ("dr_grpo", "token"), ("luspo", "sequence"), ("dapo", "sequence"))


def here(path: Path) -> None:
    """Take one step for each rule, up to the optimiser, and save the batch and the gradients."""
    start_ranks(1)
    gradients: dict[str, dict[str, torch.Tensor]] = {}
    for rule in RULES:
        keys = [f"surgery.rule={rule}", f"objective.k={K}", f"train.samples={N}", "run.threads=1"]
        keys += [f"train.prompts={PROMPTS}", "surgery.realised_every=0", "logging.kl_every=0"]
        trainer = Trainer(load_config(ROOT / "configs" / "passk.yaml", keys), None)
        trainer.step.rule_state["base_pass@1"] = BASE

        def keep(lr: float, rule: str = rule, engine: Any = trainer.engine) -> float:
            gradients[rule] = reduced_gradient(engine)
            return 1.0

        trainer.engine.step = keep
        batch = trainer.step(1)
    content = {
        "prompts": [x.prompt for x in batch.problems],
        "golds": [x.gold for x in batch.problems],
        "prompt_ids": batch.rollout.prompts,
        "completions": batch.rollout.completions,
        "verdicts": batch.correct,
        "gradients": gradients,
    }
    torch.save(content, path)


def verdicts(completions: list[str], gold: list[str], **_: Any) -> list[float]:
    return [float(x == y) for x, y in zip(completions, gold, strict=True)]


def made(folder: Path, data: dict[str, Any], reward: Any = verdicts, **more: Any) -> GRPOTrainer:
    """A trainer of twin's base; `more` are settings of GRPOConfig and arguments of the trainer."""
    policy = load_policy(Twin().base_model())
    arguments = ("objective", "surgery", "rollout_func", "callbacks")
    given = {name: more.pop(name) for name in arguments if name in more}
    world = int(os.environ.get("WORLD_SIZE", "1"))  # no process has met another yet
    settings = {
        "per_device_train_batch_size": PROMPTS * N // 2 // world,
        "gradient_accumulation_steps": 2,
        "num_generations": N,
        "max_completion_length": 4,
        "scale_rewards": "none",
        "max_grad_norm": 0.0,
        "learning_rate": 1e-3,
        "shuffle_dataset": False,
        "gradient_checkpointing": False,
        "bf16": False,
        "use_cpu": True,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
    args = GRPOConfig(output_dir=str(folder), **(settings | more))
    return GRPOTrainer(
        policy.model,
        reward,
        args,
        Dataset.from_dict(data),
        processing_class=policy.tokenizer,
        **{"objective": {"k": K}, **given},
    )


def gradients(path: Path) -> dict[str, Any]:
    """The distances from the gradients of `here`, as shares of the largest number in them."""
    batch = torch.load(path, weights_only=True)
    data = {"prompt": batch["prompts"], "gold": batch["golds"]}

    def fixed(prompts: list[str], trainer: Any) -> dict[str, Any]:
        """The batch's completions of this process."""
        first = trainer.accelerator.process_index * len(prompts)
        rows = range(first, first + len(prompts))
        assert [batch["prompts"][i // N] for i in rows] == prompts
        ids = [batch["prompt_ids"][i // N] for i in rows]
        return {
            "prompt_ids": ids,
            "completion_ids": [batch["completions"][i] for i in rows],
            "logprobs": None,
        }

    class Keep(transformers.TrainerCallback):
        def on_pre_optimizer_step(self, *_: Any, model: Any = None, **__: Any) -> None:
            named = getattr(model, "module", model).named_parameters()
            self.gradient = {name: p.grad.clone() for name, p in named}

    def distance(rule: str, **more: Any) -> float:
        keep, surgery = Keep(), {"rule": rule}
        more |= {"callbacks": [keep], "rollout_func": fixed, "max_steps": 1, "surgery": surgery}
        trainer = made(path.parent / "runs", data, **more)
        trainer.surgeon.rule_state["base_pass@1"] = BASE
        trainer.train()
        there, ours = keep.gradient, batch["gradients"][rule]
        assert there.keys() == ours.keys()
        largest = max(float(x.abs().max()) for x in ours.values())
        return max(float((there[name] - ours[name]).abs().max()) for name in ours) / largest

    rules = {rule: distance(rule) for rule in RULES}
    losses = {
        f"{loss}, {level}": distance("pcgrad", loss_type=loss, importance_sampling_level=level)
        for loss, level in LOSSES
    }
    losses["checkpointed"] = distance("pcgrad", gradient_checkpointing=True)
    return {"rules": rules, "losses": losses, "verdicts": float(batch["verdicts"].mean())}


def resume(folder: Path) -> dict[str, Any]:
    """The states of a run of four steps, and of one that is resumed after two; refusals."""
    problems = [x for step in range(4) for x in Twin().training(0, step, PROMPTS)]
    data = {"prompt": [x.prompt for x in problems], "gold": [x.gold for x in problems]}
    more: dict[str, Any] = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    more |= {"surgery": {"rule": "pcgrad"}}
    trainer = made(folder / "run", data, **more)
    trainer.train()
    logged = [x for x in trainer.state.log_history if "pass@1" in x]
    saved = [json.loads((folder / "run" / f"checkpoint-{i}" / STATE).read_text()) for i in (2, 4)]
    half = folder / "run" / "checkpoint-2"
    again = made(folder / "again", data, **more)
    again.train(resume_from_checkpoint=str(half))

    def refusal(action: Any) -> str:
        try:
            action()
        except Refusal as error:
            return str(error)
        return "taken"

    def half_right(completions: list[str], **_: Any) -> list[float]:
        return [0.5] * len(completions)

    (half / STATE).unlink()
    without = made(folder / "without", data, **more)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        made(folder / "warned", data, beta=0.0, top_p=0.9, num_iterations=2)
    return {
        "saved": saved,
        "again": json.loads((folder / "again" / "checkpoint-4" / STATE).read_text()),
        "logged": logged,
        "reward": refusal(made(folder / "half", data, half_right, max_steps=1).train),
        "no state": refusal(lambda: without.train(resume_from_checkpoint=str(half))),
        "defaults": refusal(lambda: made(folder / "plain", data, scale_rewards="group")),
        "warnings": [str(x.message) for x in caught if "update is not that" in str(x.message)],
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    mode, *paths = sys.argv[1:]
    if mode == "here":
        here(Path(paths[0]))
    else:
        result = {"gradients": gradients, "resume": resume}[mode](Path(paths[0]))
        if os.environ.get("RANK", "0") == "0":
            Path(paths[1]).write_text(json.dumps(result))
