"""Completions that were drawn, and how to draw them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from eval.errors import Failure


class SamplingFailed(Failure):
    """A policy of which nothing can be drawn, in one line."""


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
