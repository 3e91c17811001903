"""The interface to DeepSpeed: start-up, weighted backward, guarded step, complete state.

The rest of the trainer uses ranks, a policy to sample from, and three operations: backward, step
and gather.
"""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from typing import Any

import torch
from torch import Tensor

from eval.policy.logprobs import Likelihood, Rows, completion_logprobs
from eval.policy.policy import Policy
from surgery.tokens import surrogate
from trainers.config.schema import Config
from trainers.engine.adapter import make_trainable
from trainers.engine.ranks import Ranks
from trainers.engine.sync import sync_of

MOMENTS = ("exp_avg", "exp_avg_sq")


STATE = ("parameters", *MOMENTS)


FAINT = 1e-3  # the smallest denominator in Adam's metric, as a share of their mean


class LogProbs(torch.nn.Module):
    """A model as DeepSpeed runs it: its forward returns the log-probabilities for a backward."""

    def __init__(self, model: torch.nn.Module, likelihood: Likelihood):
        super().__init__()
        self.model, self.likelihood = model, likelihood

    def forward(self, rows: Rows, pieces: int) -> Tensor:
        return completion_logprobs(self.model, rows, self.likelihood, pieces)


class Engine(Ranks):
    """A policy under training, spread over the ranks."""

    def __init__(self, policy: Policy, config: Config):
        import deepspeed

        super().__init__()
        self.train, self.stage = config.train, config.train.zero_stage
        self.model = policy.model
        make_trainable(policy, config)
        # under ZeRO-3 no rank has all weights, so each keeps one more model for sampling, which is
        # filled at each rollout
        self._full_model = copy.deepcopy(policy.model).to(self.device) if self.stage == 3 else None
        likelihood = Likelihood(self.train.temperature, chunk=self.train.logprob_chunk)
        with redirect_stdout(StringIO()):  # DeepSpeed's bfloat16 optimiser prints memory there
            self._engine, *_ = deepspeed.initialize(
                model=LogProbs(self.model, likelihood),
                model_parameters=[p for _, p in self._trainable()],
                config=_deepspeed_config(config),
            )
        self.tokenizer, self.pad_id = policy.tokenizer, policy.pad_id
        self._sync = sync_of(config, self)

    @contextmanager
    def policy(self) -> Iterator[Policy]:
        """Yield the policy with all weights on every rank, for sampling and measuring."""
        if self._full_model is None:
            yield Policy(self.model, self.tokenizer)
            return
        from deepspeed.runtime.zero import GatheredParameters

        sharded = dict(self.model.named_parameters())
        for name, parameter in self._full_model.named_parameters():
            with GatheredParameters([sharded[name]]):
                parameter.data = sharded[name].data.clone()
        try:
            yield Policy(self._full_model, self.tokenizer)
        finally:
            for parameter in self._full_model.parameters():
                parameter.data = parameter.data.new_empty(0)

    @contextmanager
    def sampling(self) -> Iterator[Policy]:
        """Yield the policy to draw from; servers that draw for it have its weights then."""
        with self.policy() as policy:
            if self._sync:
                self._sync(policy, self.steps_taken)
            yield policy

    def backward(
        self,
        batches: Sequence[Rows],
        weights: Sequence[Tensor],
        scale: float,
        idle: Rows,
        old: Sequence[Tensor] = (),
    ) -> tuple[float, list[Tensor]]:
        """Accumulate the gradient of -scale * sum over all ranks of weight * log pi.

        Returns this rank's part of the loss, and the log-probabilities of each batch.

        `weights[i]` holds one number for each row of `batches[i]`, or one for each token. `old[i]`,
        if given, holds the log-probabilities of the batch under the policy that sampled it (see
        `surrogate`). Every rank must run as many backwards as the rank with most batches; the other
        ranks run `idle` with weight 0. One backward follows each forward, and only the last one of
        a step is the accumulation boundary: otherwise ZeRO 1 and 2 lose gradients.
        """
        rounds = int(self.reduce(torch.tensor(float(len(batches))), "max")) or 1
        cuts = torch.ones(rounds)
        for i, batch in enumerate(batches):
            cuts[i] = batch.pieces(self.train.logprob_chunk)
        pieces = (
            self.reduce(cuts, "max").int().tolist() if self.train.logprob_chunk else [1] * rounds
        )
        total, logprobs = 0.0, []
        for i in range(rounds):
            real = i < len(batches)
            batch, weight = (batches[i], weights[i]) if real else (idle, torch.zeros(1))
            self._engine.set_gradient_accumulation_boundary(i == rounds - 1)
            logp = self._engine(batch, pieces[i])
            if real:
                logprobs.append(logp.detach())
            before = old[i] if real and old else None
            loss = -surrogate(logp, weight.to(logp), before, self.train.ratio_clip) * scale
            # DeepSpeed averages the ranks' gradients; the factor `world` makes the mean a sum
            self._engine.backward(loss * self.world, scale_wrt_gas=False)
            total += float(loss.detach())
        return total, logprobs

    def step(self, lr: float) -> float | None:
        """Take one optimiser step and return the gradient's norm before clipping.

        If the norm is not finite, the step is skipped, and the result is None.
        """
        for group in self._engine.optimizer.param_groups:
            group["lr"] = lr
        norm = None
        if self.stage == 0:  # under ZeRO, DeepSpeed itself skips a step with a non-finite norm
            grads = [p.grad for p in self.model.parameters() if p.grad is not None]
            norm = float(torch.nn.utils.get_total_norm(grads))
            if not math.isfinite(norm):
                self._engine.zero_grad()
                return None
        self._engine.step()
        if not self._engine.was_step_applied():
            if self.stage in (
                1,
                2,
            ):  # under offload, the next gradients would be added to these
                summed = getattr(self._engine.optimizer, "averaged_gradients", {})
                summed.update(dict.fromkeys(summed))
            return None
        return float(self._engine.get_global_grad_norm()) if norm is None else norm

    def state(self, keep: bool = True) -> dict[str, dict[str, Tensor]]:
        """Return {"parameters" | "exp_avg" | "exp_avg_sq": {name: complete fp32 tensor}}.

        The tensors are in the host's memory. All ranks must call it; a rank without `keep` holds
        one tensor at a time.
        """
        return {kind: self._gathered_fp32(kind, keep) for kind in STATE}

    def _gathered_fp32(self, kind: str, keep: bool = True) -> dict[str, Tensor]:
        gathered = {}
        for name, value in self._each_fp32(kind):
            if keep:
                gathered[name] = value.cpu().clone()
        return gathered

    def _each_fp32(self, kind: str) -> Iterator[tuple[str, Tensor]]:
        """Yield each name with its complete parameter or moment, on any device.

        All ranks must consume all items.
        """
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        not_made = kind in MOMENTS and self.steps_taken == 0
        for name, p in self._trainable():
            if not_made:
                value = torch.zeros(_shape(p))
            elif self.stage == 0:
                value = p if kind == "parameters" else self._engine.optimizer.state[p][kind]
            elif kind == "parameters":
                value = safe_get_full_fp32_param(p)
            else:
                value = safe_get_full_optimizer_state(p, kind)
            yield name, value.detach().float().reshape(_shape(p))

    def snapshot(self) -> dict[str, Tensor]:
        """Return a float32 copy of all trainable weights, by name, on every rank's device."""
        return {name: x.clone() for name, x in self.weights()}

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Yield all trainable weights one by one, as the optimiser's unrounded fp32 copies.

        All ranks must consume all items.
        """
        return ((name, x.to(self.device)) for name, x in self._each_fp32("parameters"))

    def adam_scale(self) -> dict[str, Tensor] | None:
        """Return m/(sqrt(v) + epsilon) by name, with v of the steps so far; None before the first.

        m is the mean of all denominators. It gives the metric the scale of the Euclidean one, so
        that products of early and late steps can be averaged although gradients, and v with them,
        become smaller. A denominator below FAINT m counts as FAINT m: otherwise the first gradient
        of a parameter that had none would outweigh all others, which it does not in Adam's step.
        """
        if self.steps_taken == 0:
            return None
        correction = 1 - self.train.beta_2**self.steps_taken
        below = {
            name: (v.to(self.device) / correction).sqrt_().add_(self.train.epsilon)
            for name, v in self._gathered_fp32("exp_avg_sq").items()
        }
        count = sum(x.numel() for x in below.values())
        mean = sum(float(x.sum(dtype=torch.float64)) for x in below.values()) / count
        return {name: mean / x.clamp_(min=FAINT * mean) for name, x in below.items()}

    @property
    def unborn_bytes(self) -> int:
        """The bytes of device memory that are held from the first step on, and not yet now.

        They are Adam's moments, and under ZeRO-1 in bfloat16 the gradients.
        """
        if self.steps_taken or self.train.offload != "none":
            return 0
        trained = sum(_shape(p).numel() for _, p in self._trainable())
        gradients = 4 * trained * (self.stage == 1 and self.model.dtype == torch.bfloat16)
        return 8 * trained // (self.world if self.stage else 1) + gradients

    @property
    def steps_taken(self) -> int:
        """Return the number of optimiser steps; skipped steps do not count."""
        return int(max((float(s.get("step", 0)) for s in self._adam.state.values()), default=0.0))

    @property
    def _adam(self) -> torch.optim.Optimizer:
        """Return torch's own optimiser, which ZeRO wraps."""
        return self._engine.optimizer if self.stage == 0 else self._engine.optimizer.optimizer

    def restore(self, saved: Callable[[str, str], Tensor], steps: int) -> None:
        """Set parameters and moments, for any number of ranks that saved them.

        All ranks call `saved(kind, name)` for one tensor of `state` at a time, in the same order.
        """
        self._make_moments()
        for name, p in self._trainable():
            for kind in STATE:
                value = saved(kind, name).to(self.device)
                self._set(p, None if kind == "parameters" else kind, value)
        for moments in self._adam.state.values():
            if "step" in moments:
                moments["step"] = torch.full_like(
                    torch.as_tensor(moments["step"], dtype=torch.float32), steps
                )

    def _make_moments(self) -> None:
        """Make the optimiser's state by a step at learning rate 0; `restore` overwrites it."""
        ids = torch.zeros(1, 2, dtype=torch.long, device=self.device)
        empty = Rows(
            ids, torch.ones_like(ids), torch.tensor([[0, 1]], device=self.device), ids[:, 1:].bool()
        )
        self.backward([], [], 0.0, empty)
        self.step(0.0)

    def _set(self, p: torch.nn.Parameter, key: str | None, value: Tensor) -> None:
        """Set the moment `key`, or, if it is None, the parameter.

        A parameter has two copies, the model's and the optimiser's fp32 copy.
        """
        from deepspeed import utils

        if self.stage == 0:
            (p.data if key is None else self._engine.optimizer.state[p][key]).copy_(value)
        elif self.stage == 3:
            shard: Any = p
            size = shard.ds_tensor.numel()  # the last rank's part is padded
            flat = torch.nn.functional.pad(value.flatten(), (0, size * self.world - value.numel()))
            part = flat[size * self.rank : size * (self.rank + 1)]
            if key is None:
                shard.ds_tensor.data.copy_(part)
                if p.data.numel() == value.numel():  # small ones stay unsharded between uses
                    p.data.copy_(value)
                utils.safe_set_local_fp32_param(p, part)
            else:
                utils.safe_set_local_optimizer_state(p, part, key)
        elif key is None:
            p.data.copy_(value)
            utils.safe_set_full_fp32_param(p, value)
        else:
            utils.safe_set_full_optimizer_state(p, value, key)

    def _trainable(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        return ((name, p) for name, p in self.model.named_parameters() if p.requires_grad)


def _shape(p: torch.nn.Parameter) -> torch.Size:
    return getattr(p, "ds_shape", p.shape)


def _deepspeed_config(config: Config) -> dict[str, Any]:
    train = config.train
    to_cpu = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    zero: dict[str, Any] = {"stage": train.zero_stage}
    # ZeRO-1 sums over the ranks once per step, after all micro-batches
    once = {"communication_data_type": "fp32"} if train.zero_stage == 1 else {}
    if train.offload != "none":
        zero["offload_optimizer"] = to_cpu
    if train.offload == "all":
        zero["offload_param"] = to_cpu
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": train.grad_clip,
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,  # DeepSpeed would compile it
        "bf16": {"enabled": config.model.dtype == "bfloat16"},
        "optimizer": {
            "type": "AdamW",
            "params": {
                "lr": train.lr,
                "betas": [train.beta_1, train.beta_2],
                "eps": train.epsilon,
                "weight_decay": train.weight_decay,
                "torch_adam": True,  # DeepSpeed would compile its own
                "fused": torch.cuda.is_available() and train.offload == "none",
            },
        },
        "data_types": {"grad_accum_dtype": "fp32"},  # a bfloat16 sum loses small parts
        **once,
        "steps_per_print": None,
        "wall_clock_breakdown": False,
    }
