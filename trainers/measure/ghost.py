"""Exact inner products <grad log pi(y), v> over all parameters, for every row of a batch at once.

The output y = F(x; theta) of a module is affine in the module's own parameters. When theta moves
along v, the output moves by F(x; v) - F(x; 0), for any such F. The module's share of the inner
product is this tangent times the gradient of the row's log-probability with respect to y, summed
over all axes but the row. Rows do not interact, so one backward of the sum serves every row. Only
activation gradients flow: no gradient of a parameter is computed, and no hook of ZeRO runs.
"""

import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from eval.policy.logprobs import PLAIN, Likelihood, Rows, completion_logprobs, pad_batch
from trainers.measure.taps import Direction, tapped


def chosen(model: nn.Module, pattern: str | None) -> dict[str, nn.Parameter]:
    """Return the trainable parameters whose names match `pattern` (None: all), shared ones once."""
    named = model.named_parameters()
    match = re.compile(pattern or "").search
    return {name: p for name, p in named if p.requires_grad and match(name)}


def coverage(model: nn.Module, pattern: str | None) -> float:
    """Return the share of the trainable parameters that `pattern` selects."""
    sizes = [sum(p.numel() for p in chosen(model, x).values()) for x in (pattern, None)]
    return sizes[0] / max(1, sizes[1])


def zeros(model: nn.Module, pattern: str | None) -> dict[str, Tensor]:
    """Return zeros for a sum of gradients of the parameters that `pattern` selects."""
    return {
        name: torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32))
        for name, p in chosen(model, pattern).items()
    }


def gradient(
    model: nn.Module,
    batches: Sequence[Rows],
    weights: Sequence[Tensor],
    likelihood: Likelihood,
    pattern: str | None = None,
    total: dict[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Return the sum over rows of weight * grad log pi; an ordinary backward, but without `.grad`.

    If `total`, the sum of earlier rows, is given, the new rows are added to it in place: a sum is
    as large as the model, and memory holds one of them.
    """
    total = total or zeros(model, pattern)
    for rows, weight in zip(batches, weights, strict=True):
        add_gradient(model, rows, weight, total, likelihood)
    return total


def add_gradient(
    model: nn.Module,
    rows: Rows,
    weight: Tensor,
    total: dict[str, Tensor],
    likelihood: Likelihood,
) -> None:
    """Add the sum over rows of weight * grad log pi to `total`, by name."""
    named = dict(model.named_parameters())
    logp = completion_logprobs(model, rows, likelihood).sum(1)
    loss = logp @ weight.to(logp)
    parts = torch.autograd.grad(loss, [named[name] for name in total], allow_unused=True)
    for name, part in zip(total, parts, strict=True):
        if part is not None:
            total[name] += part


def probed_gradient(
    model: nn.Module,
    rows: Rows,
    weight: Tensor,
    v: Direction,
    total: dict[str, Tensor],
    likelihood: Likelihood,
) -> Tensor:
    """Run `add_gradient` and `probe` in one backward; the result is NaN where a weight is 0.

    The gradient that reaches a row's activations is the gradient of a probe times the row's weight.
    """
    with tapped(model, v, len(rows), rows.input_ids.device) as (shares, _):
        add_gradient(model, rows, weight, total, likelihood)
    return shares / weight.to(shares)


def probe(model: nn.Module, rows: Rows, v: Direction, likelihood: Likelihood) -> Tensor:
    """Return the [rows] products <grad log pi(row), v>, in float64."""
    taps = tapped(model, v, len(rows), rows.input_ids.device)
    with taps as (shares, triggers), torch.enable_grad():
        logp = completion_logprobs(model, rows, likelihood).sum(1)
        torch.autograd.grad(logp.sum(), triggers)
    return shares


def check(model: nn.Module, pattern: str | None) -> None:
    """Refuse a layer that a forward alone shows to be unfit, such as experts, which see no rows.

    The direction is 0, so that this does not check whether a layer is affine.
    """
    device = next(model.parameters()).device
    nothing = {n: p.new_zeros(()).expand_as(p) for n, p in chosen(model, pattern).items()}
    probe(model, pad_batch([[0, 0]] * 2, [[0]] * 2, 0, device), nothing, PLAIN)
