"""A stand-in for a CUDA graph that runs on CPU: what a capture forbids and forgets, it does too.

A capture runs no kernel, keeps no Python, and fails where the host would wait for the device. A
replay runs the captured kernels on the addresses that they had at the capture.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

# operations whose result the host needs at once: its value, or the size of a tensor
WAITING = {
    *("_local_scalar_dense", "item", "is_nonzero", "equal", "allclose"),
    *("nonzero", "argwhere", "masked_select", "bincount"),
    *("_unique", "_unique2", "unique_dim", "unique_consecutive"),
}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
READERS = ("tolist", "numpy", "cpu", "__array__")  # methods that read on the host, past dispatch
GARBAGE = 255  # in each byte: nan, -1


class Capturing(RuntimeError):
    """An operation that no CUDA graph can hold, in a capture."""


def waits(func: Any, args: Sequence[Any]) -> bool:
    """Return whether the host waits for the device in an operation on the device's tensors."""
    name = func.overloadpacket.__name__
    if name == "repeat_interleave":  # by a tensor, it has a length that only the device knows
        return any(isinstance(x, Tensor) for x in args[1:]) or len(args) == 1
    if name in INDEXING:
        masks = [x for x in args[1] if x is not None and x.dtype in (torch.bool, torch.uint8)]
        fills = len(args) > 2 and args[2].dim() == 0  # x[mask] = 0.0 is a masked fill
        return bool(masks) and not fills
    return name in WAITING


def refuse_in_capture(name: str) -> None:
    """Raise if a graph is captured: the host would wait here for a device that does not run."""
    if FakeGraph.capturing:
        raise Capturing(f"operation not permitted when stream is capturing: {name}")


class FakeGraph:
    """Like torch.cuda.CUDAGraph, with `capture(function)` for the context of torch.cuda.graph."""

    capturing: ClassVar[bool] = False

    def __init__(self) -> None:
        self._calls: list[_Call] | None = None

    def capture(self, function: Callable[[], object]) -> None:
        """Record the kernels of a function; no tensor or generator changes by it.

        Tensors that the function made hold garbage until the first replay.
        """
        refuse_in_capture("capture")
        recorder = _Recorder()
        FakeGraph.capturing = True
        try:
            with torch.random.fork_rng(devices=[]), _readers_refused(), recorder:
                function()
        finally:
            FakeGraph.capturing = False
            recorder.undo()
        self._calls = recorder.calls

    def replay(self) -> None:
        """Run the captured kernels; results go where they went at the capture."""
        if self._calls is None:
            raise RuntimeError("replay without a preceding successful capture")
        with torch.inference_mode():  # tensors made under inference mode may be written here
            for call in self._calls:
                call.run()


@dataclass(frozen=True)
class _Call:
    """One kernel with the tensors that it read, wrote and made."""

    func: Any
    args: Sequence[Any]
    kwargs: dict[str, Any]
    made: list[tuple[int, Tensor]]  # place among the results

    def run(self) -> None:
        results = tree_leaves(self.func(*self.args, **self.kwargs))
        for place, tensor in self.made:
            tensor.copy_(results[place])


class _Recorder(TorchDispatchMode):
    """Lets each operation run, and keeps what is needed to run it again and to undo it."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[_Call] = []
        self._made: dict[int, torch.UntypedStorage] = {}  # by address, as the next
        self._before: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if name == "lift_fresh" and args[0].dim():  # without an axis, a number for a kernel
            refuse_in_capture("a copy from the host")
        if waits(func, args):
            refuse_in_capture(name)
        written = list(_written(func, args, kwargs))
        for x in map(torch.Tensor.untyped_storage, written):
            if x.data_ptr() not in self._made.keys() | self._before.keys():
                self._before[x.data_ptr()] = x, x.clone()
        given = {x.untyped_storage().data_ptr() for x in _tensors((args, kwargs))}
        kept = _frozen(args), _frozen(kwargs)
        results = func(*args, **kwargs)
        made = [
            (i, x)
            for i, x in enumerate(tree_leaves(results))
            if isinstance(x, Tensor) and x.untyped_storage().data_ptr() not in given
        ]
        self._made |= {s.data_ptr(): s for s in (x.untyped_storage() for _, x in made)}
        if made or written:  # else it made a view
            self.calls.append(_Call(func, *kept, _frozen(made)))
        return results

    def undo(self) -> None:
        for storage, before in self._before.values():
            storage.copy_(before)
        for storage in self._made.values():
            storage.fill_(GARBAGE)


def _tensors(tree: Any) -> Iterator[Tensor]:
    return (x for x in tree_leaves(tree) if isinstance(x, Tensor))


def _frozen(tree: Any) -> Any:
    """The same tensors with the shapes that they have now, on the same addresses."""
    return tree_map_only(Tensor, Tensor.detach, tree)


def _written(func: Any, args: Iterable[Any], kwargs: dict[str, Any]) -> Iterator[Tensor]:
    """The arguments that an operation changes, by its schema."""
    schema = func._schema.arguments
    given = dict(zip((x.name for x in schema), args, strict=False)) | kwargs
    for x in schema:
        if x.alias_info and x.alias_info.is_write:
            yield from _tensors(given.get(x.name))


@contextmanager
def _readers_refused() -> Iterator[None]:
    """The methods of a tensor that read it on the host, refused."""

    def refused(name: str) -> Callable[..., None]:
        return lambda *_, **__: refuse_in_capture(name)

    with ExitStack() as stack:
        for name in READERS:
            stack.enter_context(mock.patch.object(Tensor, name, refused(name)))
        yield
