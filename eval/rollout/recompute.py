"""Log-probability, entropy and features of completions that a sampler returned without them."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from eval.policy.logprobs import entropies, log_softmax, pad_batch
from eval.policy.policy import Policy, in_eval_mode
from eval.rollout.rollout import Decoding, Readings
from eval.rollout.taps import tapped

LOGITS = 2**28  # that exist at once, in float32 and more than one copy


def measure(
    policy: Policy, prompts: list[list[int]], completions: list[list[int]], decoding: Decoding
) -> Readings:
    """Return the readings of given completions, from a separate forward.

    The completions of one prompt are consecutive.
    """
    vocabulary = len(policy.model.get_output_embeddings().weight)
    decoding = replace(decoding, token_budget=min(decoding.token_budget, LOGITS // vocabulary))
    n, width = len(completions) // len(prompts), max(map(len, prompts))
    order = sorted(range(len(completions)), key=lambda i: len(completions[i]))
    lengths = [width + len(completions[i]) for i in order]
    parts = []
    with in_eval_mode(policy.model):
        for chunk in decoding.chunks(lengths, 1):
            chunk_prompts = [prompts[i // n] for i in order[chunk]]
            chunk_completions = [completions[i] for i in order[chunk]]
            parts.append(_measure(policy, chunk_prompts, chunk_completions, decoding))
    tokens, entropy, features = zip(*parts, strict=True)
    back = torch.tensor(order).argsort().to(policy.device)
    columns = tokens[-1].shape[1]  # the last chunk has the longest completions
    by_token = torch.cat([pad(x, (0, columns - x.shape[1])) for x in tokens])[back]
    taken = torch.cat(features)[back] if decoding.features else None
    return Readings(by_token.sum(1), torch.cat(entropy)[back], taken, by_token)


def _measure(
    policy: Policy,
    prompts: Sequence[list[int]],
    completions: Sequence[list[int]],
    decoding: Decoding,
) -> tuple[Tensor, Tensor, Tensor]:
    rows = pad_batch(prompts, completions, policy.pad_id, policy.device)
    tokens, mask = rows.input_ids[:, rows.prompt_width :], rows.completion_mask
    with tapped(policy, decoding.features) as tap:
        with torch.no_grad():  # the tap enables gradients after the last layer
            logits = policy.model(
                input_ids=rows.input_ids,
                attention_mask=rows.attention_mask,
                position_ids=rows.position_ids,
                logits_to_keep=tokens.shape[1] + 1,
                use_cache=False,
            ).logits[:, :-1]
        logp = log_softmax(logits, decoding.temperature or 1.0, decoding.top_p, tokens)
        chosen = logp.gather(-1, tokens[..., None]).squeeze(-1).where(mask, 0.0)
        features = torch.zeros(len(chosen), 0, device=policy.device)
        if decoding.features:
            (gradient,) = torch.autograd.grad(chosen.sum(), tap.hidden)
            features = gradient.sum(1).float()
    logp, chosen = logp.detach(), chosen.detach()
    entropy = entropies(logp).where(mask, 0.0).sum(1) / mask.sum(1)
    return chosen.float(), entropy.float(), features
