"""Log-probability, entropy and features of completions that another engine drew."""

from collections.abc import Sequence

import torch
from torch import Tensor

from eval.policy.logprobs import log_softmax, pad_batch
from eval.policy.policy import Policy
from eval.rollout.cached import chunks, entropies
from eval.rollout.rollout import Decoding
from eval.rollout.taps import tapped


def measure(
    policy: Policy,
    prompts: list[list[int]],
    completions: list[list[int]],
    decoding: Decoding,
    features: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Log-probability, entropy and features of given completions, as `Rollout` defines them, from a
    forward of their own. The rows of each prompt follow each other.
    """
    n, width = len(completions) // len(prompts), max(map(len, prompts))
    order = sorted(range(len(completions)), key=lambda i: len(completions[i]))
    lengths = [width + len(completions[i]) for i in order]
    parts = []
    for chunk in chunks(lengths, 1, decoding.token_budget):
        some, theirs = (
            [completions[i] for i in order[chunk]],
            [prompts[i // n] for i in order[chunk]],
        )
        parts.append(_measure(policy, theirs, some, decoding, features))
    logprobs, entropy, taken = (torch.cat(x) for x in zip(*parts, strict=True))
    back = torch.tensor(order).argsort().to(policy.device)
    return logprobs[back], entropy[back], taken[back] if features else None


def _measure(
    policy: Policy,
    prompts: Sequence[list[int]],
    completions: Sequence[list[int]],
    decoding: Decoding,
    features: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    batch = pad_batch(prompts, completions, policy.pad_id, policy.device)
    tokens, mask = batch.input_ids[:, batch.prompt_width :], batch.completion_mask
    with tapped(policy.model, features) as tap:
        with torch.no_grad():  # the tap turns gradients on behind the last layer
            logits = policy.model(
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask,
                position_ids=batch.position_ids,
                logits_to_keep=tokens.shape[1] + 1,
                use_cache=False,
            ).logits[:, :-1]
        logp = log_softmax(logits, decoding.temperature or 1.0, decoding.top_p, tokens)
        chosen = logp.gather(-1, tokens[..., None]).squeeze(-1).where(mask, 0.0).sum(1)
        taken = torch.zeros(len(chosen), 0, device=policy.device)
        if features:
            (gradient,) = torch.autograd.grad(chosen.sum(), tap.hidden)
            taken = gradient.sum(1).float()
    logp, chosen = logp.detach(), chosen.detach()
    entropy = entropies(logp).where(mask, 0.0).sum(1) / mask.sum(1)
    return chosen.float(), entropy.float(), taken
