"""Exact inner products <grad log pi(y), v> over all parameters, for every row of a batch at once.

A module whose output is affine in its own parameters, y = F(x; theta), moves by F(x; v) - F(x; 0)
when theta moves along v, whatever F is. Its share of the inner product is that tangent times the
gradient of the row's log-probability with respect to y, summed over all but the row. Rows do not
interact, so one backward of the sum serves every row. Only activation gradients flow: no
parameter's gradient is formed, and no hook of ZeRO fires.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, ClassVar
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from eval.policy import Batch, completion_logprobs, pad_batch

Direction = Mapping[str, Tensor]  # by parameter name; what is missing is 0


class Unsupported(Exception):
    """A layer that cannot be measured exactly; the message names it."""


def chosen(model: nn.Module, pattern: str | None) -> dict[str, nn.Parameter]:
    """The trainable parameters whose names match `pattern` (all without one); shared ones once."""
    named = model.named_parameters()
    match = re.compile(pattern or "").search
    return {name: p for name, p in named if p.requires_grad and match(name)}


def coverage(model: nn.Module, pattern: str | None) -> float:
    """The share of the trainable parameters that `pattern` leaves in."""
    sizes = [sum(p.numel() for p in chosen(model, x).values()) for x in (pattern, None)]
    return sizes[0] / max(1, sizes[1])


def zeros(model: nn.Module, pattern: str | None) -> dict[str, Tensor]:
    """A sum of gradients of the parameters that `pattern` leaves in, to begin with."""
    return {
        name: torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32))
        for name, p in chosen(model, pattern).items()
    }


def gradient(
    model: nn.Module,
    batches: Sequence[Batch],
    weights: Sequence[Tensor],
    temperature: float,
    pattern: str | None = None,
    top_p: float = 1.0,
    chunk: int = 0,
    total: dict[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """sum over rows of weight * grad log pi, by ordinary backward; nothing is left in `.grad`.

    It is added in place to the `total` of earlier rows, if that is given: a sum is as large as the
    model, and one of them is held.
    """
    total = total or zeros(model, pattern)
    for batch, weight in zip(batches, weights, strict=True):
        add_gradient(model, batch, weight, total, temperature, top_p, chunk)
    return total


def add_gradient(
    model: nn.Module,
    batch: Batch,
    weight: Tensor,
    total: dict[str, Tensor],
    temperature: float,
    top_p: float = 1.0,
    chunk: int = 0,
) -> None:
    """`total`, by name, moves by the gradient of one batch."""
    named = dict(model.named_parameters())
    logp = completion_logprobs(model, batch, temperature, top_p, batch.pieces(chunk)).sum(1)
    loss = logp @ weight.to(logp)
    parts = torch.autograd.grad(loss, [named[name] for name in total], allow_unused=True)
    for name, part in zip(total, parts, strict=True):
        if part is not None:
            total[name] += part


def probed_gradient(
    model: nn.Module,
    batch: Batch,
    weight: Tensor,
    v: Direction,
    total: dict[str, Tensor],
    temperature: float,
    top_p: float = 1.0,
    chunk: int = 0,
) -> Tensor:
    """`probe` on the way of the backward that adds sum weight * grad log pi to `total`: what flows
    back to a row's activations is that of a probe, times the row's weight. NaN where that is 0.
    """
    rows = len(batch.input_ids)
    with _taps(model, v, rows, batch.input_ids.device) as (shares, _):
        add_gradient(model, batch, weight, total, temperature, top_p, chunk)
    return shares / weight.to(shares)


def probe(
    model: nn.Module,
    batch: Batch,
    v: Direction,
    temperature: float,
    top_p: float = 1.0,
    chunk: int = 0,
) -> Tensor:
    """[rows] <grad log pi(row), v>, in float64."""
    rows = len(batch.input_ids)
    with _taps(model, v, rows, batch.input_ids.device) as (shares, triggers), torch.enable_grad():
        logp = completion_logprobs(model, batch, temperature, top_p, batch.pieces(chunk)).sum(1)
        torch.autograd.grad(logp.sum(), triggers)
    return shares


def check(model: nn.Module, pattern: str | None) -> None:
    """Refuse what a forward shows already, such as experts, which see tokens and not rows.

    The direction is 0, and so nothing is learnt of who is affine.
    """
    device = next(model.parameters()).device
    nothing = {n: p.new_zeros(()).expand_as(p) for n, p in chosen(model, pattern).items()}
    probe(model, pad_batch([[0, 0]] * 2, [[0]] * 2, 0, device), nothing, 1.0)


class _Tap(torch.autograd.Function):
    """Identity on a module's output; its backward adds the module's share for each row.

    What the share needs of the input is saved as autograd saves it, so that checkpointing may drop
    it.
    """

    @staticmethod
    def forward(ctx: Any, output: Tensor, site: "_Site", *inputs: Tensor) -> Tensor:
        ctx.site = site
        ctx.save_for_backward(*inputs)
        return (
            output.detach()
        )  # no view: autograd would refuse it to a model that changes it in place

    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        inputs = ctx.saved_tensors  # to be asked for once only: checkpointing recomputes them
        ctx.site.add(delta, inputs)
        return (delta, *[None] * (1 + len(inputs)))


class _Site:
    """One module with parameters of its own, and its part of the direction."""

    affine: ClassVar[WeakSet[nn.Module]] = WeakSet()  # modules found to be
    linear: ClassVar[WeakSet[nn.Module]] = WeakSet()  # and those with F(x; 0) = 0

    def __init__(
        self, name: str, module: nn.Module, v: dict[str, Tensor], rows: int, shares: Tensor
    ):
        self.module, self.v, self.rows, self.shares = module, v, rows, shares
        self.label = f"{name} ({type(module).__name__})"
        self.busy = self.called = False

    def hook(self, module: nn.Module, inputs: tuple, named: dict[str, Any], output: Any) -> Any:
        if self.busy:
            return output
        self.called = True
        if named or not all(isinstance(x, Tensor) for x in (output, *inputs)):
            raise Unsupported(f"{self.label}: takes or gives more than plain tensors")
        if output.shape[0] != self.rows:
            lengths = f"{output.shape[0]} where the batch has {self.rows} rows"
            raise Unsupported(f"{self.label}: its first axis is not the batch, {lengths}")
        return _Tap.apply(output, self, *(x.detach() for x in inputs))

    @torch.no_grad()
    def add(self, delta: Tensor, inputs: Sequence[Tensor]) -> None:
        self.busy = True  # calling the module again must not set its own tap off
        try:
            tangent = self._tangent(inputs)
        finally:
            self.busy = False
        wide = tangent.to(torch.promote_types(tangent.dtype, torch.float32))
        self.shares += wide.mul_(delta).flatten(1).sum(1, dtype=torch.float64)

    def _tangent(self, inputs: Sequence[Tensor]) -> Tensor:
        """F(x; v) - F(x; 0), in a tensor of its own."""
        if type(self.module) is nn.Linear:
            return functional.linear(inputs[0], self.v["weight"], self.v.get("bias"))
        if type(self.module) is nn.Embedding:
            return functional.embedding(inputs[0], self.v["weight"])
        if self.module not in self.affine:
            return self._checked(inputs)
        at = self._at(1, inputs)
        return (at if self.module in self.linear else at - self._at(0, inputs)) / self.scale

    @cached_property
    def scale(self) -> Tensor:
        """The power of two c that makes the largest number of c * v about 1. Where a module adds 1
        to its parameters, as norms do, a far smaller v is lost in rounding.
        """
        largest = torch.stack([x.abs().max().float() for x in self.v.values()]).max()
        largest = largest.clamp(min=2.0**-100)
        return torch.frexp(largest).mantissa / largest

    def _at(self, step: int, inputs: Sequence[Tensor]) -> Tensor:
        """F(x; step * c * v)."""
        values = {key: (step * self.scale).to(x) * x for key, x in self.v.items()}
        return functional_call(self.module, values, tuple(inputs), tie_weights=False)

    def _checked(self, inputs: Sequence[Tensor]) -> Tensor:
        """The tangent where nothing is known of the module yet. Affine means that twice the step is
        twice the move, but for rounding.
        """
        at = [self._at(step, inputs) for step in range(3)]
        tangent, twice = at[1] - at[0], at[2] - at[0]
        tolerance = max(1e-2, 8 * torch.finfo(twice.dtype).eps)
        if (twice - 2 * tangent).abs().max() > tolerance * twice.abs().max():
            raise Unsupported(f"{self.label}: not affine in its own parameters")
        if twice.any():
            self.affine.add(self.module)
            if not at[0].any():
                self.linear.add(self.module)
        return tangent / self.scale


@contextmanager
def _taps(
    model: nn.Module, v: Direction, rows: int, device: torch.device
) -> Iterator[tuple[Tensor, list[Tensor]]]:
    """Taps on all modules that own a part of v. Yields the shares [rows] that a backward fills, and
    a list that the forward fills with the outputs of all embeddings: every module's output lies on
    a way back to one of these.
    """
    names = {id(p): name for name, p in model.named_parameters()}  # a shared parameter has one name
    shares = torch.zeros(rows, dtype=torch.float64, device=device)
    sites: list[_Site] = []
    triggers: list[Tensor] = []
    handles = []

    def trigger(module: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
        if not output.requires_grad:
            output = output.detach().requires_grad_()
        triggers.append(output)
        return output.clone()  # which the model may change in place

    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding):
            handles.append(module.register_forward_hook(trigger))
        own = {key: p for key, p in module._parameters.items() if p is not None}
        if not any(names[id(p)] in v for p in own.values()):
            continue
        direction = {
            key: v[names[id(p)]].to(p.dtype) if names[id(p)] in v else torch.zeros_like(p)
            for key, p in own.items()
        }
        sites.append(_Site(name, module, direction, rows, shares))
        handles.append(module.register_forward_hook(sites[-1].hook, with_kwargs=True))
    try:
        yield shares, triggers
        for site in sites:
            if not site.called and any(x.any() for x in site.v.values()):
                raise Unsupported(f"{site.label}: holds parameters, but is never called itself")
    finally:
        for handle in handles:
            handle.remove()
