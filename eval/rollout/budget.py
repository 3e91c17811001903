"""The number of tokens that a sampler may hold at once."""

import torch

from eval.policy.policy import Policy, reading

CPU_TOKENS = 2**16  # rows times columns on a CPU, where more rows are hardly faster


SHARE = 0.6  # of the free memory; the rest is for a forward's activations and lost between blocks


@torch.no_grad()
def rollout_tokens(policy: Policy, max_new_tokens: int, reserved: int = 0) -> int:
    """Return how many tokens (rows times columns) fit the memory that is free now.

    `reserved` are the bytes of free memory that something else will take later.
    """
    device = policy.device
    if device.type == "cpu":
        return CPU_TOKENS
    free, _ = torch.cuda.mem_get_info(device)
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return tokens_within(SHARE * (free - reserved), *sizes(policy), max_new_tokens)


def sizes(policy: Policy) -> tuple[int, int]:
    """Return the bytes of a token in the cache, and of a row while its token is drawn."""
    ids = torch.zeros(1, 1, dtype=torch.long, device=policy.device)
    with reading(policy.model) as cache:
        logits = policy.model(input_ids=ids, past_key_values=cache, use_cache=True).logits
    token = sum(x.keys.nbytes + x.values.nbytes for x in cache.layers)
    return token, 2 * logits.shape[-1] * logits.element_size()  # with the gradient of features


def tokens_within(free: float, token: int, row: int, max_new_tokens: int) -> int:
    """Return how many tokens fit `free` bytes, where each row has `max_new_tokens` at least."""
    return max(1, int(free / (token + row / max_new_tokens)))
