"""Completions that were drawn, and how to draw them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from eval.errors import Failure


class SamplingFailed(Failure):
    """A policy of which nothing can be drawn, in one line."""


@dataclass(frozen=True)
class Decoding:
    """How completions are drawn, and whether their features are taken."""

    max_new_tokens: int
    temperature: float = 1.0  # 0 is greedy
    top_p: float = 1.0
    # tokens that are held at once: rows times columns of a batch, or places in the paged cache
    token_budget: int = 2**16
    sampler: str = "cached"  # a name in SAMPLERS of eval/rollout/sample.py
    features: bool = False  # costs `cached` one product with the head more for each token

    def chunks(self, lengths: Sequence[int], n: int) -> Iterator[slice]:
        """Runs of prompts whose n completions, padded to the longest, fit the budget; at least one.

        `lengths` are those of a prompt with its completion.
        """
        start, longest = 0, 0
        for i, length in enumerate(lengths):
            longest = max(longest, length)
            if i > start and (i + 1 - start) * n * longest > self.token_budget:
                yield slice(start, i)
                start, longest = i, length
        yield slice(start, len(lengths))


@dataclass(frozen=True)
class Order:
    """n completions of each prompt, to be drawn."""

    prompts: list[list[int]]  # token ids
    names: list[int]  # of the prompts, in the random stream
    n: int
    decoding: Decoding
    seed: int


class Readings(NamedTuple):
    """The numbers of each completion, as `Rollout` defines them."""

    logprobs: Tensor
    entropy: Tensor
    features: Tensor | None


class Drawn(NamedTuple):
    """A sampler's answer to an order."""

    completions: list[list[int]]  # token ids; n of the first prompt, n of the second, ...
    readings: Readings | None = None  # None: the sampler took none on the way


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
