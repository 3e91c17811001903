"""From completions to the fewest rows that do the same work.

Gradients are linear in the rows: equal completions of equal prompts become one row, and rows that
are not wanted, or of weight 0, are left out. The longest rows come first, so that rows of a batch
are alike.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from eval.policy.logprobs import Rows, pad_batch
from eval.rollout.rollout import Rollout

Row = tuple[tuple[int, ...], tuple[int, ...], int]  # prompt, completion, 0 or what tells it apart


def merged(
    rollout: Rollout,
    wanted: Tensor,
    budget: int,
    pad_id: int,
    device: torch.device,
    linear: bool = True,
) -> Iterator[tuple[Rows, list[list[int]]]]:
    """Batches within `budget` tokens, and which completions each of their rows stands for; where
    the work is not `linear` in the rows, of one each.
    """
    places: dict[Row, list[int]] = {}
    prompts = [tuple(x) for x in rollout.prompts]
    for i in wanted.flatten().nonzero().squeeze(1).tolist():
        row = prompts[i // rollout.n], tuple(rollout.completions[i]), 0 if linear else i
        places.setdefault(row, []).append(i)
    rows = sorted(places, key=lambda row: -len(row[0]) - len(row[1]))
    for chunk in _fitting(rows, budget):
        batch = pad_batch([row[0] for row in chunk], [row[1] for row in chunk], pad_id, device)
        yield batch, [places[row] for row in chunk]


def micro_batches(
    rollout: Rollout,
    weights: Tensor,
    budget: int,
    pad_id: int,
    device: torch.device,
    linear: bool = True,
) -> tuple[list[Rows], list[Tensor]]:
    """Batches with one weight a row, or one a token: the sum over the completions that the row
    stands for. `weights` are [prompts, n] or [prompts, n, columns of the longest completion].
    """
    flat = weights.reshape(len(rollout.completions), *weights.shape[2:])
    wanted = (flat != 0).reshape(len(flat), -1).any(1)
    batches, sums = [], []
    for batch, places in merged(rollout, wanted, budget, pad_id, device, linear):
        batches.append(batch)
        whole = summed(flat, places).to(device)
        sums.append(whole[:, : batch.completion_mask.shape[1]] if whole.dim() > 1 else whole)
    return batches, sums


def summed(flat: Tensor, places: Sequence[Sequence[int]]) -> Tensor:
    """In float32, the sum over the completions that each row stands for."""
    order = torch.tensor([i for x in places for i in x])
    row = torch.arange(len(places)).repeat_interleave(torch.tensor(list(map(len, places))))
    return flat.new_zeros(len(places), *flat.shape[1:]).index_add_(0, row, flat[order]).float()


def _fitting(rows: Sequence[Row], budget: int) -> Iterator[Sequence[Row]]:
    start = 0
    while start < len(rows):
        stop, prompt, completion = start, 0, 0
        while stop < len(rows):
            prompt = max(prompt, len(rows[stop][0]))
            completion = max(completion, len(rows[stop][1]))
            if stop > start and (stop + 1 - start) * (prompt + completion) > budget:
                break
            stop += 1
        yield rows[start:stop]
        start = stop
