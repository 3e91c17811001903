"""n completions a prompt, by the sampler that the configuration names."""

from collections.abc import Sequence

import torch

from eval.policy.policy import ModelError, Policy, reading
from eval.rollout.cached import _cached
from eval.rollout.rollout import Decoding, Rollout, SamplingFailed


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
    if decoding.engine == "cached":
        drawn = _cached(policy, ids, n, decoding, seed, keys, features)
    else:
        from eval.rollout.continuous import continuous

        drawn = continuous(policy, ids, n, decoding, seed, keys, features)
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
    model = policy.model
    with reading(model) as cache:
        recurrent = any(hasattr(layer, "conv_states") for layer in cache.layers)
    if model._is_stateful or recurrent:
        why = f"{type(model).__name__} has a recurrent state; choose a model of attention alone"
        raise ModelError(f"train.rollouts = {engine}: {why}")
