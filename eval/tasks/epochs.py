"""Problems of a finite set in an endless stream, each once per epoch."""

from collections.abc import Sequence
from functools import lru_cache
from typing import TypeVar

import torch

from eval.policy.streams import derive_seed

T = TypeVar("T")


def in_epochs(problems: Sequence[T], seed: int, step: int, count: int) -> list[T]:
    """Return the `count` problems of a step from a stream with a new order in each epoch."""
    drawn = []
    for place in range(max(step - 1, 0) * count, max(step, 1) * count):
        epoch, i = divmod(place, len(problems))
        drawn.append(problems[order(derive_seed(seed, "epoch", epoch), len(problems))[i]])
    return drawn


@lru_cache(4)
def order(seed: int, size: int) -> list[int]:
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed)).tolist()
