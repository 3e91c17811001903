"""n completions per prompt, by one of two engines with one distribution.

`cached`, here: each prompt is read once, its cache repeated n times, finished rows stop costing.
Randomness is counter-based: the draw of token t of completion j of problem i is a pure function of
(seed, i, j, t). Whatever the micro-batches and however many ranks share the work, the draws are
the same. `continuous` is in eval/rollout/continuous.py.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from eval.policy.logprobs import log_softmax, pad_batch
from eval.policy.policy import Policy, reading
from eval.policy.streams import uniform
from eval.rollout.rollout import Decoding, Drawn
from eval.rollout.taps import tapped

OWN = 0.9  # share of distinct prefixes beyond which it does not pay to look for equal ones


LOOK = {"cpu": 1, "cuda": 8}  # tokens between looks at what has ended, which hold a GPU up


def _cached(
    policy: Policy,
    prompts: list[list[int]],
    n: int,
    decoding: Decoding,
    seed: int,
    keys: Sequence[int],
    features: bool,
) -> Drawn:
    rows = (torch.tensor(keys)[:, None] * n + torch.arange(n)).to(policy.device)
    places = [len(x) + decoding.max_new_tokens for x in prompts]
    parts = [
        _decode(policy, prompts[chunk], rows[chunk], decoding, seed, features)
        for chunk in chunks(places, n, decoding.token_budget)
    ]
    tokens, logprobs, entropy, taken = (torch.cat(x) for x in zip(*parts, strict=True))
    lengths = (tokens >= 0).sum(1).tolist()
    completions = [x[:length] for x, length in zip(tokens.tolist(), lengths, strict=True)]
    return completions, logprobs, entropy, taken if features else None


def chunks(lengths: Sequence[int], n: int, budget: int) -> Iterator[slice]:
    """Runs of prompts whose n completions, padded to the longest, fit the budget; at least one."""
    start, longest = 0, 0
    for i, length in enumerate(lengths):
        longest = max(longest, length)
        if i > start and (i + 1 - start) * n * longest > budget:
            yield slice(start, i)
            start, longest = i, length
    yield slice(start, len(lengths))


def _decode(
    policy: Policy,
    prompts: list[list[int]],
    names: Tensor,
    decoding: Decoding,
    seed: int,
    features: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Tokens (-1 after the end), log-probability, entropy and features of each row of one batch.

    `names` [prompts, n] are the rows' names in the random stream. A prefix that several rows have
    is read once: the prompts to begin with, and what completions share for as long as they do.
    """
    model, device = policy.model, policy.device
    n, names = names.shape[1], names.flatten()
    total, batch = len(names), pad_batch(prompts, [[]] * len(prompts), policy.pad_id, device)
    tokens, mask, positions = batch.input_ids, batch.attention_mask, batch.position_ids
    ends = torch.tensor(policy.end_ids, device=device)
    drawn = torch.full((total, decoding.max_new_tokens), -1, device=device)
    logprobs, entropy = torch.zeros(2, total, device=device)
    taken = torch.zeros(total, 0, device=device)
    live = torch.arange(total, device=device)  # the rows at hand
    going = torch.ones(total, dtype=torch.bool, device=device)  # which of them have not ended
    prefix, shared = live // n, True  # the prefix of each row; whether any is that of several
    with reading(model) as cache, tapped(model, features) as tap:
        for t in range(decoding.max_new_tokens):
            tap.rows = prefix
            with torch.no_grad():  # for features, the tap turns gradients on behind the last layer
                logits = model(
                    input_ids=tokens,
                    attention_mask=mask,
                    position_ids=positions,
                    past_key_values=cache,
                    use_cache=True,
                    logits_to_keep=1,
                ).logits[:, -1]
            logp = log_softmax(logits, decoding.temperature or 1.0, decoding.top_p)
            token = _draw(logp.detach(), decoding, uniform(seed, names[live], t))
            chosen = logp.gather(1, token[:, None]).squeeze(1)
            if features:
                (gradient,) = torch.autograd.grad(chosen.sum(), tap.hidden)
                if t == 0:
                    taken = torch.zeros(total, gradient.shape[-1], device=device)
                taken[live] += gradient[:, -1].float().where(going[:, None], 0.0)
                logp, chosen = logp.detach(), chosen.detach()
            drawn[live, t] = token.where(going, -1)
            logprobs[live] += chosen.where(going, 0.0)
            entropy[live] += entropies(logp).where(going, 0.0)
            going &= ~torch.isin(token, ends)

            if shared or (t + 1) % LOOK[device.type] == 0:
                kept = going.nonzero().squeeze(1)
                if not len(kept):
                    break
                if shared or len(kept) < len(live):
                    live, going = live[kept], going[kept]
                    grown = _grown(prefix[kept], token[kept], logits.shape[-1], shared)
                    parent, token, prefix, shared = grown
                    if not torch.equal(parent, torch.arange(len(mask), device=device)):
                        cache.batch_select_indices(parent)
                        mask, positions = mask[parent], positions[parent]
            tokens = token[:, None]
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
            positions = positions[:, -1:] + 1
    return drawn, logprobs, entropy / (drawn >= 0).sum(1), taken


def _grown(
    prefix: Tensor, token: Tensor, vocabulary: int, shared: bool
) -> tuple[Tensor, Tensor, Tensor, bool]:
    """Prefixes that grew by a token, each but once: which each grew from, its token, which of them
    each row has, and whether that is worth it. Where few are shared each row gets its own, for
    good.
    """
    own = torch.arange(len(prefix), device=prefix.device)
    if not shared:
        return prefix, token, own, False
    pairs, place = torch.unique(prefix * vocabulary + token, return_inverse=True)
    if len(pairs) > OWN * len(prefix):
        return prefix, token, own, False
    return pairs // vocabulary, pairs % vocabulary, place, True


def entropies(logp: Tensor) -> Tensor:
    """The entropy of each distribution; tokens outside of it count nothing."""
    return -(logp.exp() * logp.clamp(min=torch.finfo(logp.dtype).min)).sum(-1)


def _draw(logp: Tensor, decoding: Decoding, u: Tensor) -> Tensor:
    """One token a row, by inversion of the cumulative distribution at u: never one of probability
    0. Where logits are not finite it is the last.
    """
    if decoding.temperature == 0:
        return logp.argmax(1)
    levels = logp.double().exp().cumsum(1)
    u = u.clamp(max=1 - 2**-52)  # no rounding takes it to the last level, behind which nothing is
    token = torch.searchsorted(levels, u[:, None] * levels[:, -1:], right=True).squeeze(1)
    return token.clamp(max=levels.shape[1] - 1)
