"""A second device, simulated on CPU: its tensors lie in memory that is marked as the device's.

Under `FakeDevice`, torch says that there is CUDA. An operation that mixes the two devices raises,
as it would there, and all that makes the host wait for the device is counted by its place in the
code. What runs in other threads or processes is not seen.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from traceback import walk_stack
from types import SimpleNamespace
from typing import Any, Self
from unittest import mock
from weakref import WeakSet

import torch
from torch import Tensor
from torch.distributed import distributed_c10d as collectives
from torch.utils._device import _device_constructors
from transformers.utils import import_utils

from tests.fake_graph import (
    INDEXING,
    FakeGraph,
    Operation,
    Operations,
    refuse_in_capture,
    tensors,
)

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
MEMORY = 80 * 2**30  # bytes
PROPERTIES = SimpleNamespace(total_memory=MEMORY, major=9, minor=0)
CONSTRUCTORS = {x.__name__ for x in _device_constructors()}  # torch keeps them: before any patch
COPYING = {"copy_", "_to_copy"}
# beside the pointwise ones, operations that take a number of the host as a tensor
TAKE_A_NUMBER = {"fill_", "masked_fill", "masked_fill_"}
ROOT = f"{Path(__file__).resolve().parents[1]}/"
OWN = {f"{ROOT}tests/{name}.py" for name in ("fake_device", "fake_graph")}
_device_of, _to, _numpy = torch._C.TensorBase.device.__get__, Tensor.to, Tensor.numpy


class MixedDevices(RuntimeError):
    """An operation that finds its tensors on two devices."""


class FakeDevice:
    """A context in which torch has a CUDA device; `waits` counts (place, operation)."""

    def __init__(self) -> None:
        self.waits: Counter[tuple[str, str]] = Counter()
        self.operations = 0  # kernels that the device ran
        self._memory: WeakSet[torch.UntypedStorage] = WeakSet()
        self._pinned: WeakSet[torch.UntypedStorage] = WeakSet()
        self._making: torch.device | None = None  # where new tensors are to lie
        self._debug = "default"  # see torch.cuda.set_sync_debug_mode
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.callback(_forget)
            for target, name, value in self._patches():
                stack.enter_context(mock.patch.object(target, name, value))
            stack.enter_context(_Checks(self))
            _forget()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def holds(self, x: Tensor) -> bool:
        """Return whether a tensor lies on the device."""
        return x.untyped_storage() in self._memory

    def mixed(self, operation: Operation) -> bool:
        """Return whether CUDA would refuse an operation for where its tensors lie."""
        host = [x for x in operation.tensors if not self.holds(x)]
        if operation.func.namespace == "c10d":  # NCCL has no tensors of the host
            return bool(host) and operation.name != "barrier"
        if len(host) in (0, len(operation.tensors)) or operation.name in COPYING:
            return False
        if operation.name in INDEXING:  # indices of the host are moved
            values = tensors(operation.args[2:])
            numbers = all(self.holds(x) or x.dim() == 0 for x in values)
            return not (self.holds(operation.args[0]) and numbers)
        changed = {id(x) for x in operation.written}
        takes = torch.Tag.pointwise in operation.func.tags or operation.name in TAKE_A_NUMBER
        numbers = all(x.dim() == 0 and id(x) not in changed for x in host)
        return not (takes and numbers and (len(host) == 1 or operation.name == "where"))

    def waited(self, operation: Operation) -> str | None:
        """Return for what the host waits in an operation; None if it does not wait."""
        name, args = operation.name, operation.args
        if not any(map(self.holds, operation.tensors)):
            return None
        if name == "copy_":
            return self._copied(args[1], args[0], len(args) > 2 and args[2])
        if name in INDEXING and not all(map(self.holds, tensors(args[1]))):
            return f"{name} by an index of the host"
        by_mask = operation.masked and any(map(self.holds, tensors(args[2:])))
        return name if by_mask or operation.waits else None

    def run(self, operation: Operation) -> Any:
        """Run an operation where its tensors lie; mark what it makes."""
        if self.mixed(operation):
            shapes = ", ".join(f"{list(x.shape)} on {self._place(x)}" for x in operation.tensors)
            refused = f"{operation.func} of {shapes}"
            raise MixedDevices(f"expected all tensors on the same device: {refused}")
        if what := self.waited(operation):
            self.wait(what)
        on_device = any(map(self.holds, operation.tensors))
        self.operations += on_device
        results = operation.run()
        makes = on_device if self._making is None else self._making.type == "cuda"
        if makes:
            self._memory.update(x.untyped_storage() for _, x in operation.made(results))
        return results

    def wait(self, what: str) -> None:
        """Count that the host waits for the device here."""
        refuse_in_capture(what)
        if self._debug == "error":
            raise RuntimeError(f"called a synchronizing CUDA operation: {what}")
        self.waits[_site(), what] += 1

    def _place(self, x: Tensor) -> torch.device:
        return CUDA if self.holds(x) else _device_of(x)

    def _copied(self, source: Tensor, target: Tensor, asynchronous: bool) -> str | None:
        """Return for what the host waits in a copy."""
        there, back = self.holds(target), self.holds(source)
        host = source if there else target
        if there == back or (asynchronous and host.untyped_storage() in self._pinned):
            return None
        return "copy to the device" if there else "copy to the host"

    @contextmanager
    def _makes(self, device: torch.device) -> Iterator[None]:
        before, self._making = self._making, device
        try:
            yield
        finally:
            self._making = before

    # -- in place of torch's own ------------------------------------------------------------------

    def _patches(self) -> Iterator[tuple[Any, str, Any]]:
        """Yield (owner, name, value) of all that is replaced."""
        yield FakeGraph, "on_device", staticmethod(self.holds)
        yield Tensor, "device", property(self._place)
        yield Tensor, "is_cuda", property(self.holds)
        yield Tensor, "is_cpu", property(lambda x: self._place(x) == CPU)
        yield Tensor, "get_device", lambda x: 0 if self.holds(x) else -1
        yield Tensor, "to", lambda x, *args, **kwargs: self._to(x, *args, **kwargs)
        yield Tensor, "cpu", lambda x, **_: self._to(x, CPU)
        yield Tensor, "cuda", lambda x, **_: self._to(x, CUDA)
        yield Tensor, "pin_memory", lambda x, *_: self._pin(x)
        yield Tensor, "is_pinned", lambda x, *_: x.untyped_storage() in self._pinned
        yield Tensor, "record_stream", lambda x, stream: self._record_stream(x)
        yield Tensor, "tolist", self._reading("tolist", Tensor.tolist)
        yield Tensor, "numpy", lambda x, **kwargs: self._numpy(x, **kwargs)
        for name, function in list(vars(torch).items()):
            if name in CONSTRUCTORS or name.endswith("_like"):
                yield torch, name, self._constructor(function)
        for name in ("new_empty", "new_full", "new_ones", "new_tensor", "new_zeros"):
            yield Tensor, name, self._constructor(getattr(Tensor, name))
        yield collectives, "_get_object_coll_device", lambda group=None: "cuda"
        for name, value in self._cuda().items():
            yield torch.cuda, name, value
        yield torch.accelerator, "current_stream", _Stream  # asked where torch is built for CUDA
        for name in ("range_push", "range_pop"):
            yield torch.cuda.nvtx, name, lambda message="": None

    def _cuda(self) -> dict[str, Callable[..., Any]]:
        """A device that is there, and empty; it draws random numbers as the host does."""
        return {
            "is_available": lambda: True,
            "device_count": lambda: 1,
            "current_device": lambda: 0,
            "set_device": lambda device: None,
            "device": nullcontext,
            "synchronize": lambda device=None: self.wait("synchronize"),
            "mem_get_info": lambda device=None: (MEMORY, MEMORY),
            "get_device_properties": lambda device=None: PROPERTIES,
            "get_rng_state": lambda device=None: torch.get_rng_state(),
            "set_rng_state": lambda state, device=None: torch.set_rng_state(state),
            "reset_peak_memory_stats": lambda device=None: None,
            "Stream": _Stream,
            "current_stream": _Stream,
            "default_stream": _Stream,
            "stream": nullcontext,
            "Event": _Stream,
            "CUDAGraph": FakeGraph,
            "graph": lambda graph, *_, **__: graph.recording(),
            "graph_pool_handle": lambda: (0, 0),
            "is_current_stream_capturing": lambda: False,
            "get_sync_debug_mode": lambda: self._debug,
            "set_sync_debug_mode": lambda mode: setattr(self, "_debug", mode),
        }

    def _to(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Like Tensor.to: the tensor itself, or a copy of it where it is wanted."""
        if args and isinstance(args[0], Tensor):
            args = (args[0].device, args[0].dtype, *args[1:])
        copy = bool(kwargs.pop("copy", False))  # which a module's `to` does not take
        device, dtype, asynchronous, memory_format = torch._C._nn._parse_to(*args, **kwargs)
        more: Any = {"dtype": dtype or x.dtype, "copy": copy}
        if memory_format is not None:
            more["memory_format"] = memory_format
        if device is None or device.type == self._place(x).type:
            return _to(x, **more)
        if device.type == "meta":
            return _to(x, device, **more)
        with self._makes(device):
            moved = _to(x, **more | {"copy": True})
        if asynchronous and self.holds(x):  # torch pins what it copies to
            self._pinned.add(moved.untyped_storage())
        if what := self._copied(x, moved, asynchronous):
            self.wait(what)
        return moved

    def _record_stream(self, x: Tensor) -> None:
        if not self.holds(x):
            raise MixedDevices("record_stream: a tensor of the host is in no stream")

    def _pin(self, x: Tensor) -> Tensor:
        if self.holds(x):
            raise MixedDevices("pin_memory: only memory of the host can be pinned")
        pinned = x.clone()
        self._pinned.add(pinned.untyped_storage())
        return pinned

    def _numpy(self, x: Tensor, **kwargs: Any) -> Any:
        if self.holds(x):
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        return _numpy(x, **kwargs)

    def _reading(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def reads(x: Tensor) -> Any:
            if self.holds(x):
                self.wait(name)
            return function(x)

        return reads

    def _constructor(self, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """Wrap a function with an argument `device`."""
        from_host = function.__name__ in ("tensor", "as_tensor", "asarray", "new_tensor")

        def construct(*args: Any, device: Any = None, **kwargs: Any) -> Tensor:
            if kwargs.pop("pin_memory", False):
                return construct(*args, device=device, **kwargs).pin_memory()
            if device is None:
                return function(*args, **kwargs)
            if from_host:
                return function(*args, **kwargs).to(device)
            device = torch.device(device)
            memory = CPU if device.type == "cuda" else device
            with self._makes(device):
                return function(*args, device=memory, **kwargs)

        return construct


class _Stream:
    """The device's only queue, or an event in it."""

    def __init__(self, *_: Any, **__: Any):
        pass

    def record(self, stream: Self | None = None) -> None:
        pass

    wait_stream = wait_event = record

    def is_capturing(self) -> bool:
        return FakeGraph.capturing

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        torch.cuda.synchronize()


class _Checks(Operations):
    """Hands a device all operations of this thread."""

    def __init__(self, device: FakeDevice):
        super().__init__()
        self.device = device

    def call(self, operation: Operation) -> Any:
        return self.device.run(operation)


def _forget() -> None:
    """Let transformers ask anew whether there is CUDA."""
    for value in vars(import_utils).values():
        if hasattr(value, "cache_clear"):
            value.cache_clear()


def _site() -> str:
    """Return file and line of the innermost frame in the project."""
    for frame, line in walk_stack(None):
        name = frame.f_code.co_filename
        if name.startswith(ROOT) and name not in OWN and "site-packages" not in name:
            return f"{name.removeprefix(ROOT)}:{line}"
    return "?"
