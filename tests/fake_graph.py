"""A stand-in for a CUDA graph that runs on CPU: what a capture forbids and forgets, it does too.

A capture runs no kernel, keeps no Python, and fails where the host would wait for the device. A
replay runs the captured kernels on the addresses that they had at the capture.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_map_only

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


@dataclass(frozen=True)
class Operation:
    """An operation of torch that has a kernel, with its arguments."""

    func: Any
    args: Sequence[Any]
    kwargs: dict[str, Any]

    @cached_property
    def name(self) -> str:
        return self.func.overloadpacket.__name__

    @cached_property
    def tensors(self) -> list[Tensor]:
        return tensors([self.args, self.kwargs])

    @cached_property
    def written(self) -> list[Tensor]:
        """The arguments that the operation changes, by its schema."""
        schema = self.func._schema.arguments
        given = dict(zip((x.name for x in schema), self.args, strict=False)) | self.kwargs
        changed = (x.name for x in schema if x.alias_info and x.alias_info.is_write)
        return tensors([given.get(name) for name in changed])

    @property
    def masked(self) -> bool:
        """Whether the operation takes or sets what a mask chooses."""
        indices = tensors(self.args[1]) if self.name in INDEXING else []
        return any(x.dtype in (torch.bool, torch.uint8) for x in indices)

    @property
    def waits(self) -> bool:
        """Whether the host waits for the device, if the tensors are the device's."""
        if self.name in INDEXING:  # x[mask] = 0.0 fills by a mask
            return self.masked and not (len(self.args) > 2 and self.args[2].dim() == 0)
        known = self.kwargs.get("output_size") is not None  # which spares repeat_interleave a look
        return self.name in ALSO or (not known and not AT_ONCE.isdisjoint(self.func.tags))

    def run(self) -> Any:
        return self.func(*self.args, **self.kwargs)

    def made(self, results: Any) -> list[tuple[int, Tensor]]:
        """Return those of its results, with their places, that lie in no memory of an argument."""
        known = {x.untyped_storage()._cdata for x in self.tensors}
        found = enumerate(tensors(results))
        return [(i, x) for i, x in found if x.untyped_storage()._cdata not in known]


def tensors(tree: Any) -> list[Tensor]:
    """Return the tensors in arguments or results; torch's own walk takes longer than a kernel."""
    if isinstance(tree, Tensor):
        return [tree]
    parts = tree.values() if isinstance(tree, dict) else tree
    return [y for x in parts for y in tensors(x)] if isinstance(tree, list | tuple | dict) else []


class Operations(TorchDispatchMode):
    """Hands the operations of this thread to `call`; under inference mode, their parts."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        with self:
            results = func.decompose(*args, **kwargs)
        return self.call(Operation(func, args, kwargs)) if results is NotImplemented else results

    def call(self, operation: Operation) -> Any:
        raise NotImplementedError


class FakeGraph:
    """Like torch.cuda.CUDAGraph; `recording` is like the context torch.cuda.graph."""

    capturing: ClassVar[bool] = False
    # whether a tensor is the device's; the host's numbers are read at the capture, and never again
    on_device: ClassVar[Callable[[Tensor], bool]] = staticmethod(lambda x: True)

    def __init__(self) -> None:
        self._calls: list[_Call] | None = None
        self._capture = ExitStack()

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

    def capture_begin(self, **_: Any) -> None:
        """Begin a recording that `capture_end` ends."""
        self._capture.enter_context(self.recording())

    def capture_end(self) -> None:
        self._capture.close()

    def replay(self) -> None:
        """Run the captured kernels; results go where they went at the capture."""
        if self._calls is None:
            raise RuntimeError("replay without a preceding successful capture")
        # tensors made under inference mode may be written here; the host sees none of it
        with torch.inference_mode(), _disable_current_modes():
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
    """One kernel, and the tensors that it made, with their places among its results."""

    operation: Operation
    made: list[tuple[int, Tensor]]

    def run(self) -> None:
        results = tensors(self.operation.run())
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

    def call(self, operation: Operation) -> Any:
        on_device = FakeGraph.on_device
        here = [x for x in operation.tensors if on_device(x)]
        if operation.name == "lift_fresh" and here and here[0].dim():  # else a kernel's number
            refuse_in_capture("a copy from the host")
        if here and operation.waits:
            refuse_in_capture(operation.name)
        changed = [x.untyped_storage() for x in operation.written if on_device(x)]
        self._remember(changed)
        kept = tree_map_only(Tensor, _kept, [operation.args, operation.kwargs])
        results = operation.run()
        new = [(i, x) for i, x in operation.made(results) if on_device(x)]
        self._made |= {s._cdata: s for s in (x.untyped_storage() for _, x in new)}
        if new or changed:  # else it made a view, or the host worked
            made = [(i, _kept(x)) for i, x in new]
            self.calls.append(_Call(Operation(operation.func, *kept), made))
        return results

    def _remember(self, storages: Iterable[torch.UntypedStorage]) -> None:
        """Keep the contents of memory that is about to change."""
        with _disable_current_modes():
            for x in storages:
                if x._cdata not in self._made.keys() | self._before.keys():
                    self._before[x._cdata] = x, x.clone()

    def undo(self) -> None:
        """Give memory its contents back; what was made holds garbage."""
        with _disable_current_modes():
            for storage, before in self._before.values():
                storage.copy_(before)
            for storage in self._made.values():
                storage.fill_(GARBAGE)  # type: ignore[attr-defined]


def _kept(x: Tensor) -> Tensor:
    """The same memory in the shape that it has now; a number of the host as it is now."""
    return x.detach() if FakeGraph.on_device(x) or x.dim() else x.clone()
