"""Taps on the modules of a model: each adds its share of an inner product for every row."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, ClassVar
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from eval.errors import Refusal

Direction = Mapping[str, Tensor]  # by parameter name; a missing parameter counts as 0


class Unsupported(Refusal):
    """A layer that cannot be measured exactly; the message names it."""


class _Tap(torch.autograd.Function):
    """Identity on a module's output; its backward adds the module's share for each row.

    The inputs that the share needs are saved as autograd saves them, so that checkpointing may drop
    them.
    """

    @staticmethod
    def forward(ctx: Any, output: Tensor, site: "_Site", *inputs: Tensor) -> Tensor:
        ctx.site = site
        ctx.save_for_backward(*inputs)
        # no view: autograd would refuse a model that changes a view in place
        return output.detach()

    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        inputs = ctx.saved_tensors  # read once only: checkpointing recomputes them at each read
        ctx.site.add(delta, inputs)
        return (delta, *[None] * (1 + len(inputs)))


class _Site:
    """One module with parameters of its own, and its part of the direction."""

    affine: ClassVar[WeakSet[nn.Module]] = WeakSet()  # modules that passed the check
    linear: ClassVar[WeakSet[nn.Module]] = WeakSet()  # the affine ones with F(x; 0) = 0

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
        self.busy = True  # a second call of the module must not trigger its own tap
        try:
            tangent = self._tangent(inputs)
        finally:
            self.busy = False
        wide = tangent.to(torch.promote_types(tangent.dtype, torch.float32))
        self.shares += wide.mul_(delta).flatten(1).sum(1, dtype=torch.float64)

    def _tangent(self, inputs: Sequence[Tensor]) -> Tensor:
        """Return F(x; v) - F(x; 0) in a new tensor."""
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
        """The power of two c that makes the largest number of c * v about 1.

        Some norms add 1 to their parameters: a far smaller v would be lost in rounding there.
        """
        largest = torch.stack([x.abs().max().float() for x in self.v.values()]).max()
        largest = largest.clamp(min=2.0**-100)
        return torch.frexp(largest).mantissa / largest

    def _at(self, step: int, inputs: Sequence[Tensor]) -> Tensor:
        """Return F(x; step * c * v)."""
        values = {key: (step * self.scale).to(x) * x for key, x in self.v.items()}
        return functional_call(self.module, values, tuple(inputs), tie_weights=False)

    def _checked(self, inputs: Sequence[Tensor]) -> Tensor:
        """Return the tangent of a module, and refuse a module that is not affine.

        In an affine module twice the step gives twice the move, up to rounding.
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
def tapped(
    model: nn.Module, v: Direction, rows: int, device: torch.device
) -> Iterator[tuple[Tensor, list[Tensor]]]:
    """Put taps on all modules that own a part of v.

    Yields the shares [rows], which a backward fills, and a list, which the forward fills with the
    outputs of all embeddings: the backward to these passes through the output of every module.
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
        return output.clone()  # the model may change the clone in place

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
