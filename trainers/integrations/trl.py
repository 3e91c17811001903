"""TRL's GRPOTrainer with the objectives, rules and measurements of this project.

Only the advantages change. TRL samples, scores, updates, logs and saves as it does without this
file, on any number of processes and with any of its ways to sample.

The methods overridden here are private ones of TRL 1.16, so pyproject.toml names that release.
"""

import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import trl
from accelerate.utils import is_peft_model
from torch import Tensor, nn

from eval.errors import Refusal
from eval.files import read_json, write_json
from trainers.config.values import ConfigError
from trainers.integrations.settings import settings
from trainers.integrations.surgeon import Surgeon, rates, verdicts
from trainers.integrations.terms import SCALES, check, departures

STATE = "surgery.json"  # in each checkpoint


class GRPOTrainer(trl.GRPOTrainer):
    """A GRPOTrainer whose advantages come from an objective and a rule of this project.

    `objective` and `surgery` hold the settings of these sections of a configuration. Rewards must
    add up to 1 for a right completion and 0 for a wrong one. The rules `pcgrad` and `floor` compare
    pass@1 with that of the base: ``trainer.surgeon.rule_state["base_pass@1"] = 0.64`` gives it, and
    otherwise the first batch does.
    """

    def __init__(
        self,
        model: Any,
        reward_funcs: Any = None,
        args: Any = None,
        *others: Any,
        objective: Mapping[str, Any] | None = None,
        surgery: Mapping[str, Any] | None = None,
        **named: Any,
    ):
        if args is None:
            raise ConfigError("args = None: scales rewards; give GRPOConfig(scale_rewards='none')")
        check(args)
        n, prompts = args.num_generations, args.generation_batch_size // args.num_generations
        config = settings(objective or {}, surgery or {}, n, prompts, "num_generations")
        self.surgeon = Surgeon(config)
        super().__init__(model, reward_funcs, args, *others, **named)
        changes = departures(args)
        if self.aux_loss_enabled:
            changes.append("router_aux_loss_coef adds a loss, which no rule measures")
        if changes:
            text = "; ".join(changes)
            warnings.warn(f"the update is not that of the objective alone: {text}", stacklevel=2)

    def _calculate_rewards(self, *args: Any) -> Tensor:
        """Keep the verdicts of all processes' completions beside the rewards."""
        rewards = super()._calculate_rewards(*args)
        total = (rewards * self.reward_weights.to(rewards)).nansum(1)
        total[rewards.isnan().all(1)] = torch.nan  # no function judged this completion
        self._verdicts = verdicts(total)
        return rewards

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """Put the advantages of the objective and the rule in the place of TRL's."""
        output = super()._generate_and_score_completions(inputs)
        training = self.model.training
        n = self.num_generations if training else self.num_generations_eval
        correct = self._verdicts.view(-1, n)
        metrics = self._metrics["train" if training else "eval"]
        scalars = rates(correct, self.surgeon.config.objective.k)
        if training:
            step = self.state.global_step + 1
            features = partial(self._features, output)
            rate = float(self.lr_scheduler.get_last_lr()[0])
            advantages, more = self.surgeon(step, correct, features, rate)
            self._logs["advantages"].extend(advantages.flatten().tolist())  # the table of log()
            scale = SCALES[self.loss_type](self.args, float(output["num_items_in_batch"]))
            first = self.accelerator.process_index * len(inputs)
            mine = advantages.flatten()[first : first + len(inputs)]
            output["advantages"] = (mine * scale).to(output["advantages"])
            scalars |= more
        for name, value in scalars.items():
            metrics[name].append(value)
        return output

    def _features(self, output: dict[str, Any]) -> Tensor:
        """Return d log pi / d last hidden states of all processes' completions, summed over tokens.

        They take one more forward, in pieces of the size of a micro-batch.
        """
        if "pixel_values" in output:
            why = "last_layer does not read images; use a rule that measures nothing"
            raise Refusal(f"surgery.rule = {self.surgeon.config.surgery.rule}: {why}")
        ids, mask = (
            torch.cat([output[f"prompt_{x}"], output[f"completion_{x}"]], 1)
            for x in ("ids", "mask")
        )
        counted = output["completion_mask"] * output.get("tool_mask", 1)
        size = self.args.per_device_train_batch_size
        pieces = zip(*(x.split(size) for x in (ids, mask, counted)), strict=True)
        return self.accelerator.gather(torch.cat([self._features_of(*x) for x in pieces]))

    def _features_of(self, ids: Tensor, mask: Tensor, counted: Tensor) -> Tensor:
        """Return the features of some rows; autograd begins at the last hidden states."""
        hidden: list[Tensor] = []

        def begin(module: nn.Module, inputs: Any, output: Any) -> Any:
            torch.set_grad_enabled(True)  # until no_grad ends
            output.last_hidden_state = output.last_hidden_state.detach().requires_grad_()
            hidden.append(output.last_hidden_state)
            return output

        model = self.accelerator.unwrap_model(self.model)
        body = (model.get_base_model() if is_peft_model(model) else model).base_model
        handle = body.register_forward_hook(begin)
        try:
            with torch.no_grad():
                logps, *_ = self._get_per_token_logps_and_entropies(
                    self.model, ids, mask, counted.shape[1]
                )
                (gradient,) = torch.autograd.grad((logps * counted).sum(), hidden)
        finally:
            handle.remove()
        return gradient.sum(1).float()

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Save the state of the rule and of the measurement beside TRL's."""
        super()._save_checkpoint(model, trial)
        if self.args.should_save:
            folder = Path(self._get_output_dir(trial=trial), f"checkpoint-{self.state.global_step}")
            write_json(folder / STATE, self.surgeon.state())

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Load the state of the rule and of the measurement beside TRL's."""
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        path = Path(checkpoint, STATE)
        if not path.is_file():
            why = "no surgery.json in it; resume from a checkpoint of this trainer"
            raise Refusal(f"resume_from_checkpoint = {checkpoint}: {why}")
        self.surgeon.restore(read_json(path, {"rule_state": dict, "fastest": float, "probe": dict}))
