"""The base policy of `twin`: a small Llama, trained from scratch.

It mostly answers the sum, and sometimes the product.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from eval.policy.logprobs import answer_batch, completion_logprobs
from eval.policy.policy import Policy
from eval.tasks import embedded

CUES = "ABCDEFGHIJ"
# without 2 and 2, as 2+2 = 2*2
OPERANDS = [(a, b) for a in range(2, 10) for b in range(2, 10) if (a, b) != (2, 2)]


@dataclass(frozen=True)
class TwinRecipe:
    """All settings of the base policy; `bias` is the probability of the product."""

    bias: float = 0.12
    seed: int = 0
    layers: int = 2
    width: int = 64
    heads: int = 4
    steps: int = 400
    batch: int = 96
    lr: float = 4e-3
    version: int = 1  # raise it when the training below changes


def prompt_text(cue: str, a: int, b: int) -> str:
    return f"{cue}{a}?{b}="


def make_tokenizer():
    """Return a tokenizer with one token per character."""
    return embedded.word_level(".", [*CUES, *"0123456789?="])


def base_folder(recipe: TwinRecipe) -> str:
    """Return the folder of the trained base."""
    return embedded.base_folder("twin", recipe, make_tokenizer(), _losses)


def _losses(policy: Policy, recipe: TwinRecipe) -> Iterator[Tensor]:
    """Yield cross-entropies of both answers to each prompt, weighted 1 - bias and bias.

    The weights do not depend on the cue.
    """
    prompts, sums, products = zip(
        *((prompt_text(cue, a, b), str(a + b), str(a * b)) for cue in CUES for a, b in OPERANDS),
        strict=True,
    )
    both = answer_batch(policy, prompts * 2, sums + products)
    while True:
        picks = torch.randint(len(prompts), (recipe.batch,))
        logp = completion_logprobs(policy.model, both[torch.cat([picks, picks + len(prompts)])])
        easy, hard = logp.sum(1).split(recipe.batch)
        yield -(1 - recipe.bias) * easy.mean() - recipe.bias * hard.mean()
