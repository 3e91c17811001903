"""The sampler `vllm`: completions drawn by servers that hold a copy of the policy's weights.

The distribution is that of `cached`, but the draws differ: they come from vLLM's generators, whose
seed is a pure function of (seed, problem). A prompt's draws depend neither on the number of ranks
or servers nor on the other prompts, as far as the server computes the same logits in another batch.
vLLM does not promise that, so another number of ranks or servers promises only the distribution.

Whoever draws must give the servers the policy's weights before (see trainers/engine/sync.py).
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from eval.policy.policy import Policy
from eval.policy.streams import derive_seed
from eval.rollout.rollout import Drawn, Order, SamplingFailed, Servers
from eval.rollout.sampler import Sampler
from eval.rollout.servers import LONGER, NoAnswer, complete, completions_of, request


class Served(Sampler):
    """Servers of vLLM, which get the policy's weights before a draw; see launch/serve.py."""

    name: ClassVar[str] = "vllm"

    def draw(self, policy: Policy, order: Order) -> Drawn:
        """Draw the completions of each prompt by one request.

        Prompts under one seed would get the same random numbers, and completion j of a request has
        the seed + j. So each prompt has a seed of its own, far from all others.
        """
        decoding, ends = order.decoding, policy.end_ids
        assert decoding.servers is not None
        greedy = decoding.temperature == 0
        n = 1 if greedy else order.n  # greedy: all n are the same, and vLLM refuses more
        cut = {"temperature": decoding.temperature, "top_p": decoding.top_p}
        bodies = [
            request(
                prompt,
                n,
                decoding.max_new_tokens,
                cut | {"seed": derive_seed(order.seed, name) >> 1},
                ends,
            )
            for prompt, name in zip(order.prompts, order.names, strict=True)
        ]
        try:
            answers = complete(decoding.servers, order.names, bodies)
            pairs = [pair for x in answers for pair in completions_of(x, n)]
        except NoAnswer as error:
            raise SamplingFailed(f"train.rollouts = vllm: a server {error}") from None
        for ids, _ in pairs:
            if not ids or (ids[-1] not in ends and len(ids) < decoding.max_new_tokens):
                why = f"a server ended a completion after {len(ids)} tokens"
                remedy = f"{LONGER}, and the same command goes on"
                raise SamplingFailed(f"train.rollouts = vllm: {why}; {remedy}")
        pairs = [pair for pair in pairs for _ in range(order.n // n)]
        return Drawn([ids for ids, _ in pairs], served=[x for _, x in pairs])


def mismatch(
    by_token: Tensor | None, served: Sequence[Sequence[float]] | None, servers: Servers | None
) -> Tensor | None:
    """Return log pi - log pi_served of each token [rows, columns], 0 after the end.

    None means that the policy itself was sampled. Old weights on a server show here at once, so a
    mean distance beyond the bound ends the run.
    """
    if by_token is None or served is None or servers is None:
        return None
    columns = by_token.shape[1]
    theirs = torch.tensor([[*x, *[0.0] * (columns - len(x))] for x in served])
    difference = by_token.cpu() - theirs
    mean = float(difference.abs().sum()) / sum(map(len, served))
    if not mean <= servers.bound:
        why = f"the servers' log-probabilities of a token differ by {mean:.2g} from the policy's"
        remedy = "serve the model of model.path in model.dtype, or raise the bound"
        raise SamplingFailed(f"rollout.mismatch = {servers.bound:g}: {why}; {remedy}")
    return difference
