"""From completions and advantages to the fewest rows that have the same gradient."""

from collections.abc import Sequence

import torch
from torch import Tensor

from eval.policy import Batch, pad_batch
from eval.sampling import Rollout


def micro_batches(
    rollout: Rollout, advantages: Tensor, budget: int, pad_id: int, device
) -> tuple[list[Batch], list[Tensor]]:
    """Batches of at most `budget` tokens with one weight a row, the longest rows first.

    The gradient is linear in the rows: equal completions of equal prompts become one row of summed
    weight,
    and rows of weight 0 are left out.
    """
    totals: dict[tuple[tuple[int, ...], tuple[int, ...]], float] = {}
    for row, (completion, weight) in enumerate(
        zip(rollout.completions, advantages.flatten().tolist(), strict=True)
    ):
        key = (tuple(rollout.prompts[row // rollout.n]), tuple(completion))
        totals[key] = totals.get(key, 0.0) + weight
    rows = sorted(
        (key for key, weight in totals.items() if weight), key=lambda x: -len(x[0]) - len(x[1])
    )
    batches, weights = [], []
    for chunk in _fitting(rows, budget):
        batches.append(pad_batch([x[0] for x in chunk], [x[1] for x in chunk], pad_id, device))
        weights.append(torch.tensor([totals[x] for x in chunk], device=device))
    return batches, weights


def _fitting(rows: Sequence, budget: int):
    start = 0
    while start < len(rows):
        stop = start + 1
        prompt, completion = map(len, rows[start])
        while stop < len(rows):
            prompt, completion = (
                max(prompt, len(rows[stop][0])),
                max(completion, len(rows[stop][1])),
            )
            if (stop + 1 - start) * (prompt + completion) > budget:
                break
            stop += 1
        yield rows[start:stop]
        start = stop
