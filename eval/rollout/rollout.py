"""Drawn completions, and the settings of a draw."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from eval.errors import Failure


class SamplingFailed(Failure):
    """The policy cannot be sampled; the message is one line."""


@dataclass(frozen=True)
class Servers:
    """The servers of the sampler `vllm`."""

    urls: tuple[str, ...]  # http://host:port
    timeout: float  # seconds in which a server must answer
    bound: float  # largest mean distance of its log-probabilities from the policy's, per token


@dataclass(frozen=True)
class Decoding:
    """The settings of a draw, and whether it returns features."""

    max_new_tokens: int
    temperature: float = 1.0  # 0 is greedy
    top_p: float = 1.0
    # tokens in memory at once: rows times columns of a batch, or slots of the paged cache; 0: as
    # many as fit
    token_budget: int = 0
    sampler: str = "cached"  # a name in SAMPLERS of eval/rollout/sample.py
    features: bool = False  # costs `cached` one more product with the head per token
    cuda_graph: bool = True  # on a GPU, `cached` captures a token as a graph where it can
    servers: Servers | None = None  # only `vllm` has servers

    def chunks(self, lengths: Sequence[int], n: int) -> Iterator[slice]:
        """Yield runs of prompts whose n completions, padded to the longest, fit the budget.

        A run has at least one prompt. `lengths` are the lengths of a prompt with its completion.
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
    """A request for n completions of each prompt."""

    prompts: list[list[int]]  # token ids
    names: list[int]  # the prompts' names in the random stream
    n: int
    decoding: Decoding
    seed: int


class Readings(NamedTuple):
    """The numbers of each completion, as `Rollout` defines them."""

    logprobs: Tensor
    entropy: Tensor
    features: Tensor | None
    by_token: Tensor | None = None  # [rows, columns] log-probability of each token; 0 after the end


class Drawn(NamedTuple):
    """A sampler's answer to an order."""

    completions: list[list[int]]  # token ids; n of the first prompt, n of the second, ...
    readings: Readings | None = None  # None: the sampler computed none during the draw
    # log-probability of each token under the distribution that served it, if it was another model
    served: list[list[float]] | None = None


@dataclass(frozen=True)
class Rollout:
    """n completions for each prompt; row i n + j is completion j of prompt i."""

    prompts: list[list[int]]
    completions: list[list[int]]  # token ids, with the end-of-text token if there is one
    texts: list[str]  # without the end-of-text token
    truncated: Tensor  # [rows] bool: no end of text within the limit
    logprobs: Tensor  # [rows] log-probability of the completion under the distribution sampled
    entropy: Tensor  # [rows] mean entropy over the completion's tokens
    features: Tensor | None  # [rows, width] d logprobs / d last hidden states, summed over tokens
    n: int
    # [rows, columns] log pi - log pi_served of each token, 0 after the end; None: not served
    mismatch: Tensor | None = None

    @property
    def lengths(self) -> Tensor:
        return torch.tensor([len(x) for x in self.completions])
