"""The divergence of the policy from the base that training started from."""

from collections.abc import Callable

import torch
from torch import Tensor

from eval.policy.logprobs import Likelihood, completion_logprobs
from eval.policy.policy import Policy
from eval.rollout.rollout import Rollout
from surgery.tokens import divergence
from trainers.config.schema import Config
from trainers.engine.adapter import without_adapter
from trainers.engine.batches import Work, merged
from trainers.engine.engine import Engine


class Reference:
    """The base: the policy without its adapter, or a second model on each rank.

    The second model is loaded on first use.
    """

    def __init__(self, config: Config, engine: Engine, load: Callable[[], Policy]):
        self.config, self.engine, self.load = config, engine, load
        self.base: Policy | None = None
        used = bool(config.logging.kl_every or config.train.kl_coef)
        self.second = used and not config.model.lora_rank  # whether there will be a second model

    def __call__(self, rollout: Rollout) -> tuple[float, Tensor]:
        """Return the mean KL of a completion over all ranks, and the token weights that lower it.

        The weights are [prompts, n, columns] of this rank's completions.
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
        """Return the [prompts, n, columns] log-probabilities of the tokens; 0 after the end."""
        train, lengths = self.config.train, rollout.lengths
        logprobs = torch.zeros(len(lengths), int(lengths.max()), dtype=torch.float64)
        likelihood = Likelihood(train.temperature, chunk=train.logprob_chunk)
        work = Work(train.micro_batch_tokens, self.engine.pad_id, self.engine.device)
        for rows, places in merged(rollout, torch.ones(len(lengths)), work):
            logp = completion_logprobs(policy.model, rows, likelihood)
            for row, where in zip(logp.cpu().double(), places, strict=True):
                logprobs[where, : len(row)] = row
        return logprobs.view(-1, rollout.n, logprobs.shape[1])
