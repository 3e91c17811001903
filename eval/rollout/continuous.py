"""The sampler `continuous`: transformers' continuous batching over a paged cache.

When a completion ends, a waiting one takes its place at once, so completions of unequal length keep
the device busy. The distribution is that of `cached`, but the draws differ: they come from torch's
generator, seeded from the seed and the current prompts, in the order of the engine's own schedule.
So the same device repeats the same draws, but another number of ranks or another budget gives
different ones.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch

from eval.policy.policy import Policy, in_eval_mode
from eval.policy.streams import derive_seed
from eval.rollout.rollout import Drawn, Order, SamplingFailed
from eval.rollout.sampler import Sampler

PAGE = 16  # tokens; n completions of a prompt share its full pages and copy the rest
FORWARD = 512  # tokens per forward: without flash attention, the mask has a row for each token


class Continuous(Sampler):
    """The continuous batching of transformers, with a paged cache."""

    name: ClassVar[str] = "continuous"

    def check(self, policy: Policy) -> None:
        """Refuse a recurrent state, and attention code that does not support a paged cache.

        Such attention ignores the paged cache, and most such models then sample from another
        distribution without an error.
        """
        super().check(policy)
        model = policy.model
        if not model._supports_attention_backend:
            why = f"the attention of {type(model).__name__} does not support a paged cache"
            raise self.refusal(f"{why}; set it to cached")

    def draw(self, policy: Policy, order: Order) -> Drawn:
        seed = derive_seed(order.seed, *order.names)
        if order.decoding.temperature > 0:
            return Drawn(_generate(policy, order, order.n, seed))
        completions = _generate(policy, order, 1, seed)  # greedy: all n are the same
        return Drawn([x for x in completions for _ in range(order.n)])


def _generate(policy: Policy, order: Order, n: int, seed: int) -> list[list[int]]:
    """Return n completions for each prompt, in order."""
    from transformers import ContinuousBatchingConfig, GenerationConfig

    prompts, decoding = order.prompts, order.decoding
    longest = max(map(len, prompts)) + decoding.max_new_tokens
    needed = -(-longest // PAGE) + 1  # one completion, and one page for the shared prompt
    how = GenerationConfig(
        max_new_tokens=decoding.max_new_tokens,
        do_sample=decoding.temperature > 0,
        temperature=decoding.temperature or 1.0,
        top_p=decoding.top_p,
        top_k=0,
        eos_token_id=policy.end_ids,
        pad_token_id=policy.pad_id,
        num_return_sequences=n,
    )
    cache = ContinuousBatchingConfig(
        page_size=PAGE,
        num_blocks=max(decoding.token_budget // PAGE, needed),
        max_batch_tokens=FORWARD,
        use_cuda_graph=False,  # the weights change between rollouts
        auto_switch_to_flash=False,  # keep the attention that training uses
        disable_nccl_graph_mixing=False,
        seed=seed % 2**31,
    )
    with in_eval_mode(policy.model), _engine(policy, how, cache) as manager:
        names = manager.add_requests(prompts, decoding.max_new_tokens)
        return _collected(manager, names, n)


def _collected(manager: Any, names: list[str], n: int) -> list[list[int]]:
    """Collect the n completions of each request, in the order of the requests."""
    manager.start()  # after all requests are added, so that timing does not change the schedule
    ended: dict[str, Any] = {}
    while len(ended) < n * len(names):
        result = manager.get_result(timeout=1)
        if result and result.error:
            raise SamplingFailed(f"continuous batching failed: {result.error}")
        if result:
            ended[result.request_id] = result
        elif not manager.is_running():
            raise SamplingFailed("continuous batching stopped before all completions ended")
    return [
        ended[name].generated_tokens
        for parent in names
        for name in (parent, *(f"{parent}__child#{i}" for i in range(n - 1)))
    ]


@contextmanager
def _engine(policy: Policy, how: Any, cache: Any) -> Iterator[Any]:
    """Yield the engine; afterwards stop it and restore the state of torch's generators."""
    device = policy.device
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.no_grad():
        manager = policy.model.init_continuous_batching(how, cache)
        try:
            yield manager
        finally:
            manager.stop(hard_stop=True)
