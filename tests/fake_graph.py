"""A stand-in for a CUDA graph that runs on CPU: what a capture forbids and forgets, it does too.

A capture runs no kernel, keeps no Python, and fails where the host would wait for the device. A
replay runs the captured kernels on the addresses that they had at the capture.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map_only

# the host needs the result at once: it is a number, or the length of a tensor
AT_ONCE = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
ALSO = {"equal", "allclose"}  # which torch does not tag
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
READERS = ("tolist", "numpy", "cpu")  # methods that read on the host, past all operations
GARBAGE = 255  # in each byte: nan, -1


class Capturing(RuntimeError):
    """An operation that no CUDA graph can hold, in a capture."""


def refuse_in_capture(name: str) -> None:
    """Raise if a graph is captured: the host would wait here for a device that does not run."""
    if FakeGraph.capturing:
        raise Capturing(f"operation not permitted when stream is capturing: {name}")


class Operations(TorchDispatchMode):
    """Hands each operation of torch that has a kernel to `call`, under inference mode too."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        with self:
            parts = func.decompose(*args, **kwargs)
        return self.call(func, args, kwargs) if parts is NotImplemented else parts

    def call(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        raise NotImplementedError


def name_of(func: Any) -> str:
    return func.overloadpacket.__name__


def tensors(tree: Any) -> list[Tensor]:
    return [x for x in tree_leaves(tree) if isinstance(x, Tensor)]


def written(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> list[Tensor]:
    """Return the arguments that an operation changes, by its schema."""
    schema = func._schema.arguments
    given = dict(zip((x.name for x in schema), args, strict=False)) | kwargs
    names = [x.name for x in schema if x.alias_info and x.alias_info.is_write]
    return tensors([given.get(name) for name in names])


def made(results: Any, given: Any) -> list[tuple[int, Tensor]]:
    """Return the results, with their places, that lie in no memory of the arguments."""
    known = {x.untyped_storage()._cdata for x in tensors(given)}
    found = enumerate(tensors(results))
    return [(i, x) for i, x in found if x.untyped_storage()._cdata not in known]


def waits(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    """Return whether the host waits for the device in an operation on the device's tensors."""
    name = name_of(func)
    if name in INDEXING:
        masks = [x for x in args[1] if x is not None and x.dtype in (torch.bool, torch.uint8)]
        fills = len(args) > 2 and args[2].dim() == 0  # x[mask] = 0.0 is a masked fill
        return bool(masks) and not fills
    known = kwargs.get("output_size") is not None  # the length that repeat_interleave gives
    return name in ALSO or (not known and not AT_ONCE.isdisjoint(func.tags))


class FakeGraph:
    """Like torch.cuda.CUDAGraph; `recording` is like the context torch.cuda.graph."""

    capturing: ClassVar[bool] = False
    # whether a tensor is the device's; the host's are read at the capture, and never again
    on_device: ClassVar[Callable[[Tensor], bool]] = staticmethod(lambda x: True)

    def __init__(self) -> None:
        self._calls: list[_Call] | None = None

    def capture(self, function: Callable[[], object]) -> None:
        """Record the kernels of a function; see `recording`."""
        with self.recording():
            function()

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record the kernels of a block; no tensor or generator of the device changes by it.

        Tensors that the block made hold garbage until the first replay.
        """
        refuse_in_capture("capture")
        recorder = _Recorder()
        try:
            with _capturing(), recorder:
                yield
        finally:
            recorder.undo()
        self._calls = recorder.calls

    def replay(self) -> None:
        """Run the captured kernels; results go where they went at the capture."""
        if self._calls is None:
            raise RuntimeError("replay without a preceding successful capture")
        with torch.inference_mode():  # tensors made under inference mode may be written here
            for call in self._calls:
                call.run()


@contextmanager
def _capturing() -> Iterator[None]:
    """A capture of torch's stream, in which no method of a tensor reads it past the operations."""

    def reader(name: str) -> Callable[..., Any]:
        function = getattr(Tensor, name)

        def read(x: Tensor, *args: Any, **kwargs: Any) -> Any:
            if FakeGraph.on_device(x):
                refuse_in_capture(name)
            return function(x, *args, **kwargs)

        return read

    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        for name in READERS:
            stack.enter_context(mock.patch.object(Tensor, name, reader(name)))
        asked = mock.patch("torch.cuda.is_current_stream_capturing", lambda: True)
        stack.enter_context(asked)
        stack.enter_context(mock.patch.object(FakeGraph, "capturing", True))
        yield


@dataclass(frozen=True)
class _Call:
    """One kernel with the tensors that it read, wrote and made."""

    func: Any
    args: Sequence[Any]
    kwargs: dict[str, Any]
    made: list[tuple[int, Tensor]]  # place among the results

    def run(self) -> None:
        results = tensors(self.func(*self.args, **self.kwargs))
        for place, tensor in self.made:
            tensor.copy_(results[place])


class _Recorder(Operations):
    """Lets each operation run, and keeps what is needed to run it again and to undo it."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[_Call] = []
        # by storage: those made since, and those written, with their contents before
        self._made: dict[int, torch.UntypedStorage] = {}
        self._before: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}

    def call(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        given = args, kwargs
        here = [x for x in tensors(given) if FakeGraph.on_device(x)]
        name = name_of(func)
        if name == "lift_fresh" and here and args[0].dim():  # else a number for a kernel
            refuse_in_capture("a copy from the host")
        if here and waits(func, *given):
            refuse_in_capture(name)
        changed = [x for x in written(func, *given) if FakeGraph.on_device(x)]
        for storage in (x.untyped_storage() for x in changed):
            if storage._cdata not in self._made.keys() | self._before.keys():
                with _disable_current_modes():
                    self._before[storage._cdata] = storage, storage.clone()
        kept = tree_map_only(Tensor, _kept, given)
        results = func(*args, **kwargs)
        new = [(i, x) for i, x in made(results, given) if FakeGraph.on_device(x)]
        self._made |= {s._cdata: s for s in (x.untyped_storage() for _, x in new)}
        if new or changed:  # else it made a view, or the host worked
            self.calls.append(_Call(func, *kept, made=[(i, _kept(x)) for i, x in new]))
        return results

    def undo(self) -> None:
        with _disable_current_modes():
            for storage, before in self._before.values():
                storage.copy_(before)
            for storage in self._made.values():
                storage.fill_(GARBAGE)  # type: ignore[attr-defined]


def _kept(x: Tensor) -> Tensor:
    """The same memory in the shape that it has now; of the host, a copy of its numbers."""
    return x.detach() if FakeGraph.on_device(x) else x.clone()
