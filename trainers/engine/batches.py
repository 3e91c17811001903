"""Pack completions into micro-batches of the fewest padded rows that do the same work.

Gradients are linear in the rows: equal completions of equal prompts become one row, and
completions that are not wanted, or have weight 0, are left out. The longest rows come first, so
that the rows of a micro-batch have similar lengths.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from eval.policy.logprobs import Rows, pad_batch
from eval.rollout.rollout import Rollout

Pair = tuple[tuple[int, ...], tuple[int, ...], int]  # prompt, completion, 0 or a unique number


@dataclass(frozen=True)
class Work:
    """The size of a micro-batch, and the device of its rows."""

    budget: int  # tokens: rows times columns
    pad_id: int
    device: torch.device


def merged(
    rollout: Rollout, wanted: Tensor, work: Work, linear: bool = True
) -> Iterator[tuple[Rows, list[list[int]]]]:
    """Yield micro-batches, each with the list of completions that each row represents.

    If the work is not `linear` in the rows, each row represents a single completion.
    """
    places: dict[Pair, list[int]] = {}
    prompts = [tuple(x) for x in rollout.prompts]
    for i in wanted.flatten().nonzero().squeeze(1).tolist():
        pair = prompts[i // rollout.n], tuple(rollout.completions[i]), 0 if linear else i
        places.setdefault(pair, []).append(i)
    pairs = sorted(places, key=lambda pair: -len(pair[0]) - len(pair[1]))
    for some in _fitting(pairs, work.budget):
        both = [pair[0] for pair in some], [pair[1] for pair in some]
        yield pad_batch(*both, work.pad_id, work.device), [places[pair] for pair in some]


def micro_batches(
    rollout: Rollout, weights: Tensor, work: Work, linear: bool = True
) -> tuple[list[Rows], list[Tensor]]:
    """Return micro-batches with one weight per row or token, summed over the row's completions.

    `weights` are [prompts, n] or [prompts, n, columns of the longest completion].
    """
    flat = weights.reshape(len(rollout.completions), *weights.shape[2:])
    wanted = (flat != 0).reshape(len(flat), -1).any(1)
    batches, sums = [], []
    for rows, places in merged(rollout, wanted, work, linear):
        batches.append(rows)
        total = summed(flat, places).to(work.device)
        sums.append(total[:, : rows.completion_mask.shape[1]] if total.dim() > 1 else total)
    return batches, sums


def summed(flat: Tensor, places: Sequence[Sequence[int]]) -> Tensor:
    """Return, in float32, the sum over the completions that each row represents."""
    order = torch.tensor([i for x in places for i in x])
    row = torch.arange(len(places)).repeat_interleave(torch.tensor(list(map(len, places))))
    return flat.new_zeros(len(places), *flat.shape[1:]).index_add_(0, row, flat[order]).float()


def _fitting(pairs: Sequence[Pair], budget: int) -> Iterator[Sequence[Pair]]:
    """Yield runs of pairs that fit the budget after padding; each has at least one pair."""
    start = 0
    while start < len(pairs):
        stop, prompt, completion = start, 0, 0
        while stop < len(pairs):
            prompt = max(prompt, len(pairs[stop][0]))
            completion = max(completion, len(pairs[stop][1]))
            if stop > start and (stop + 1 - start) * (prompt + completion) > budget:
                break
            stop += 1
        yield pairs[start:stop]
        start = stop
