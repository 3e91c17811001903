"""How far the policy has gone from the base that it began as."""

from collections.abc import Callable

import torch
from torch import Tensor

from eval.policy.logprobs import completion_logprobs
from eval.policy.policy import Policy
from eval.rollout.rollout import Rollout
from surgery.tokens import divergence
from trainers.config.schema import Config
from trainers.engine.adapter import without_adapter
from trainers.engine.batches import merged
from trainers.engine.engine import Engine


class Reference:
    """The base is the policy without its adapter, or else a second model on each rank, loaded when
    it is first needed.
    """

    def __init__(self, config: Config, engine: Engine, load: Callable[[], Policy]):
        self.config, self.engine, self.load = config, engine, load
        self.base: Policy | None = None

    def __call__(self, rollout: Rollout) -> tuple[float, Tensor]:
        """The mean KL of a completion over all ranks, and the token weights [prompts, n, columns]
        of this rank's completions that lower it.
        """
        adapter = self.config.model.lora_rank > 0
        with self.engine.policy() as policy:
            own = self._logprobs(policy, rollout)
            if adapter:
                with without_adapter(policy.model):
                    base = self._logprobs(policy, rollout)
        if not adapter:
            if self.base is None:
                self.base = self.load()
                self.base.model.to(self.engine.device)
            base = self._logprobs(self.base, rollout)
        value, weights = divergence(own, base)
        count = self.config.train.prompts * self.config.train.samples
        return float(self.engine.reduce(value.sum())) / count, weights

    @torch.no_grad()
    def _logprobs(self, policy: Policy, rollout: Rollout) -> Tensor:
        """[prompts, n, columns] of each token; 0 after the end."""
        train, lengths = self.config.train, rollout.lengths
        found = torch.zeros(len(lengths), int(lengths.max()), dtype=torch.float64)
        everything, pad = torch.ones(len(lengths)), self.engine.pad_id
        budget, device = train.micro_batch_tokens, self.engine.device
        for batch, places in merged(rollout, everything, budget, pad, device):
            pieces = batch.pieces(train.logprob_chunk)
            logp = completion_logprobs(policy.model, batch, train.temperature, pieces=pieces)
            for row, where in zip(logp.cpu().double(), places, strict=True):
                found[where, : len(row)] = row
        return found.view(-1, rollout.n, found.shape[1])
