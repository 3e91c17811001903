"""n completions per prompt, by one of two engines with one distribution.

`cached`, here: each prompt is read once, its cache repeated n times, finished rows stop costing.
Randomness is counter-based: the draw of token t of completion j of problem i is a pure function of
(seed, i, j, t). Whatever the micro-batches and however many ranks share the work, the draws are
the same. `continuous` is in eval/continuous.py.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from eval.policy import ModelError, Policy, log_softmax, pad_batch

OWN = 0.9  # share of distinct prefixes beyond which it does not pay to look for equal ones
LOOK = {"cpu": 1, "cuda": 8}  # tokens between looks at what has ended, which hold a GPU up


class SamplingFailed(Exception):
    """A policy of which nothing can be drawn, in one line."""


def derive_seed(*parts: int | str) -> int:
    """An independent 63-bit seed for each purpose, such as derive_seed(seed, "train", step)."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "big") >> 1


def _wrap(x: int) -> int:
    """A Python integer as the int64 that tensor arithmetic would have given."""
    return (x + 2**63) % 2**64 - 2**63


def _mix(x: Tensor) -> Tensor:
    """The finaliser of splitmix64 on int64, whose overflow wraps; the mask makes >> a logical
    shift.
    """
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ ((x >> shift) & ((1 << (64 - shift)) - 1))) * _wrap(factor)
    return x ^ ((x >> 31) & ((1 << 33) - 1))


def uniform(seed: int, rows: Tensor, t: int) -> Tensor:
    """float64 uniforms in [0, 1), one for each row at position t."""
    key = _mix(rows * _wrap(0x9E3779B97F4A7C15) + seed)
    key = _mix(key + _wrap((t + 1) * 0xD1B54A32D192ED03))
    return ((key >> 11) & ((1 << 53) - 1)).double() * 2.0**-53


@dataclass(frozen=True)
class Decoding:
    """How completions are drawn. `token_budget` bounds the tokens that are held at once: rows times
    columns of a batch, or places in the paged cache.
    """

    max_new_tokens: int
    temperature: float = 1.0  # 0 is greedy
    top_p: float = 1.0
    token_budget: int = 2**16
    engine: str = "cached"  # or continuous


@dataclass(frozen=True)
class Rollout:
    """n completions for each prompt; row i n + j is completion j of prompt i."""

    prompts: list[list[int]]
    completions: list[list[int]]  # token ids, with the end-of-text token where there is one
    texts: list[str]  # without it
    truncated: Tensor  # [rows] bool: no end of text within the limit
    logprobs: Tensor  # [rows] log-probability of the completion under the distribution sampled
    entropy: Tensor  # [rows] mean entropy over the completion's tokens
    features: Tensor | None  # [rows, width] d logprobs / d last hidden states, summed over tokens
    n: int

    @property
    def lengths(self) -> Tensor:
        return torch.tensor([len(x) for x in self.completions])


# completions, and of each the log-probability, the entropy and, where wanted, the features
Drawn = tuple[list[list[int]], Tensor, Tensor, Tensor | None]


def sample(
    policy: Policy,
    prompts: Sequence[str],
    n: int,
    decoding: Decoding,
    seed: int,
    problem_ids: Sequence[int] | None = None,
    features: bool = False,
) -> Rollout:
    """Draw n completions for each prompt.

    `problem_ids` name the prompts to the random stream, so that a share of the prompts draws what
    it would draw among all of them (by `cached`). `features` asks for the last-layer features of
    `Rollout`, which `cached` takes on the way at the cost of one product with the head.
    """
    check_cache(policy, decoding.engine)
    ids = policy.encode(prompts)
    keys = list(range(len(ids)) if problem_ids is None else problem_ids)
    training = policy.model.training
    policy.model.eval()
    if decoding.engine == "cached":
        drawn = _cached(policy, ids, n, decoding, seed, keys, features)
    else:
        from eval.continuous import continuous

        drawn = continuous(policy, ids, n, decoding, seed, keys, features)
    policy.model.train(training)
    completions, logprobs, entropy, taken = drawn
    if not logprobs.isfinite().all():
        prompt = prompts[int(logprobs.isfinite().logical_not().nonzero()[0]) // n]
        why = f"the model's logits are not finite after the prompt {prompt[:60]!r}"
        raise SamplingFailed(f"{why}; look at its weights, and try model.dtype=float32")
    ends = set(policy.end_ids)
    truncated = [x[-1] not in ends for x in completions]
    bodies = [tuple(x if cut else x[:-1]) for x, cut in zip(completions, truncated, strict=True)]
    distinct = list(dict.fromkeys(bodies))  # of few tokens, many completions are equal
    decoded = policy.tokenizer.batch_decode(distinct, skip_special_tokens=False)
    text_of = dict(zip(distinct, decoded, strict=True))
    texts = [text_of[x] for x in bodies]
    return Rollout(ids, completions, texts, torch.tensor(truncated), logprobs, entropy, taken, n)


def check_cache(policy: Policy, engine: str) -> None:
    """Refuse a model with a recurrent state: that of a prefix is not shared as keys and values are,
    and padding goes into it.
    """
    from transformers import DynamicCache

    model = policy.model
    kinds = {
        *(getattr(model.config, "layer_types", None) or ()),
        *(getattr(model.config, "block_types", None) or ()),
    }  # transformers before 5.5 says it of some models by these alone
    if (
        model._is_stateful
        or kinds & {"conv", "recurrent"}
        or any(hasattr(layer, "conv_states") for layer in DynamicCache(config=model.config).layers)
    ):
        why = f"{type(model).__name__} has a recurrent state; choose a model of attention alone"
        raise ModelError(f"train.rollouts = {engine}: {why}")


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
    from transformers import DynamicCache

    model, device = policy.model, policy.device
    n, names = names.shape[1], names.flatten()
    total, batch = len(names), pad_batch(prompts, [[]] * len(prompts), policy.pad_id, device)
    tokens, mask, positions = batch.input_ids, batch.attention_mask, batch.position_ids
    ends = torch.tensor(policy.end_ids, device=device)
    drawn = torch.full((total, decoding.max_new_tokens), -1, device=device)
    logprobs, entropy = torch.zeros(2, total, device=device)
    taken = torch.zeros(total, 0, device=device)
    cache = DynamicCache(config=model.config)
    live = torch.arange(total, device=device)  # the rows at hand
    going = torch.ones(total, dtype=torch.bool, device=device)  # which of them have not ended
    prefix, shared = live // n, True  # the prefix of each row; whether any is that of several
    with tapped(model, features) as tap:
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


class Tap:
    rows: Tensor | None = None
    hidden: Tensor


@contextmanager
def tapped(model, features: bool) -> Iterator[Tap]:
    """A tap on the output head: gives it the hidden states of `rows` (None: each once), and for
    features starts a graph there.

    The graph runs through whatever the model does after the hidden state, soft-capping included.
    """
    tap = Tap()

    def hook(module, args):
        hidden = args[0] if tap.rows is None else args[0][tap.rows]
        if features:
            torch.set_grad_enabled(True)
            hidden = hidden.detach().requires_grad_()
            tap.hidden = hidden
        return (hidden, *args[1:])

    handle = model.get_output_embeddings().register_forward_pre_hook(hook)
    try:
        yield tap
    finally:
        handle.remove()
