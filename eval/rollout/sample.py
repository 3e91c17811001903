"""Sampling of n completions per prompt with the configured sampler."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from eval.policy.policy import Policy
from eval.rollout.budget import rollout_tokens
from eval.rollout.cached import Cached
from eval.rollout.continuous import Continuous
from eval.rollout.recompute import measure
from eval.rollout.rollout import Decoding, Order, Rollout, SamplingFailed
from eval.rollout.sampler import Sampler
from eval.rollout.served import Served, mismatch

# the choices of train.rollouts, which trainers/config/schema.py repeats
SAMPLERS: dict[str, Sampler] = {x.name: x for x in (Cached(), Continuous(), Served())}


def sample(
    policy: Policy,
    prompts: Sequence[str],
    n: int,
    decoding: Decoding,
    seed: int,
    problem_ids: Sequence[int] | None = None,
) -> Rollout:
    """Draw n completions for each prompt.

    `problem_ids` name the prompts in the random stream. With `cached`, a subset of the prompts
    therefore gets the same draws as it gets among all prompts.
    """
    if not decoding.token_budget:
        tokens = rollout_tokens(policy, decoding.max_new_tokens)
        decoding = replace(decoding, token_budget=tokens)
    sampler = SAMPLERS[decoding.sampler]
    sampler.check(policy)
    ids = policy.encode(prompts)
    names = list(range(len(ids)) if problem_ids is None else problem_ids)
    try:
        drawn = sampler.draw(policy, Order(ids, names, n, decoding, seed))
        completions = drawn.completions
        readings = drawn.readings or measure(policy, ids, completions, decoding)
    except torch.OutOfMemoryError:
        why = f"train.rollout_tokens = {decoding.token_budget}: too much for the device's memory"
        raise SamplingFailed(f"{why}; set half of it") from None
    if not readings.logprobs.isfinite().all():
        row = int(readings.logprobs.isfinite().logical_not().nonzero()[0])
        why = f"the model's logits are not finite after the prompt {prompts[row // n][:60]!r}"
        raise SamplingFailed(f"{why}; check its weights, or try model.dtype=float32")
    ends = set(policy.end_ids)
    truncated = [x[-1] not in ends for x in completions]
    bodies = [tuple(x if cut else x[:-1]) for x, cut in zip(completions, truncated, strict=True)]
    distinct = list(dict.fromkeys(bodies))  # many short completions are equal
    decoded = policy.tokenizer.batch_decode(distinct, skip_special_tokens=False)
    text_of = dict(zip(distinct, decoded, strict=True))
    texts = [text_of[x] for x in bodies]
    logprobs, entropy, features, by_token = readings
    distance = mismatch(by_token, drawn.served, decoding.servers)
    cut = torch.tensor(truncated)
    return Rollout(ids, completions, texts, cut, logprobs, entropy, features, n, distance)
