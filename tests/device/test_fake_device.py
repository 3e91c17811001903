"""The fake device refuses what CUDA refuses, counts the waits for it, and leaves no trace."""

import sys
from contextlib import nullcontext

import pytest
import torch
from torch.distributed import distributed_c10d as collectives
from torch.nn import functional
from transformers.utils import is_torch_cuda_available

from eval.rollout.rollout import Decoding
from eval.rollout.sample import sample
from tests.fake_device import FakeDevice, MixedDevices
from tests.fake_graph import Capturing, FakeGraph
from tests.fakes import PROMPTS, random_policy

MODES = [torch.enable_grad, torch.no_grad, torch.inference_mode]


@pytest.fixture
def device():
    with FakeDevice() as device:
        yield device


def here(*shape: int) -> torch.Tensor:
    return torch.ones(*shape, device="cuda")


def place() -> torch.Tensor:
    return torch.zeros(2, dtype=torch.long)


# x has two numbers, on the device
MIXED = {
    "add": lambda x: x + torch.ones(2),
    "add in place": lambda x: torch.ones(2).add_(x),
    "add to a number of the host": lambda x: torch.ones(()).add_(x.sum()),
    "two numbers of the host": lambda x: x.addcmul_(torch.ones(()), torch.ones(())),
    "cat": lambda x: torch.cat([x, torch.ones(2)]),
    "stack with a number": lambda x: torch.stack([x.sum(), torch.ones(())]),
    "where": lambda x: torch.where(x > 0, torch.ones(2), torch.zeros(2)),
    "matmul": lambda x: x @ torch.ones(2),
    "linear": lambda x: functional.linear(x, torch.ones(3, 2)),
    "embedding": lambda x: functional.embedding(place(), x[:, None]),
    "gather": lambda x: x.gather(0, place()),
    "index_select": lambda x: x.index_select(0, place()),
    "index of the host": lambda x: torch.ones(2)[x.long()],
    "index_put": lambda x: x.__setitem__(place(), torch.ones(2)),
    "masked_fill": lambda x: x.masked_fill(torch.ones(2).bool(), 0.0),
    "foreach": lambda x: torch._foreach_add([x], [torch.ones(2)]),
    "as the host's": lambda x: torch.zeros_like(x, device="cpu") + x,
    "a part of the host's": lambda x: x + torch.ones(4).view(2, 2).t()[0],
    "moved back": lambda x: x.cpu() + x,
    "no stream of the host": lambda x: torch.ones(2).record_stream(None),
    "no pinned device": lambda x: x.pin_memory(),
}
FINE = {
    "a number of the host": lambda x: x * torch.ones(()),
    "a python number": lambda x: x + 1,
    "where of two numbers": lambda x: torch.where(x > 0, torch.ones(()), torch.zeros(())),
    "masked_fill by a number": lambda x: x.masked_fill(x > 0, torch.zeros(())),
    "mask": lambda x: x.masked_fill_(x > 0, 0.0).clamp_(min=1),
    "made like it": lambda x: torch.zeros_like(x) + x.new_ones(2) + torch.arange(2, device="cuda"),
    "a view": lambda x: x[None].expand(3, 2) + x.view(1, 2),
    "of another dtype": lambda x: x.double() + x.to(torch.int32),
    "a number set at places": lambda x: x.__setitem__(x.long() - 1, x.sum()),
    "a number set by a mask": lambda x: x.__setitem__(x > 0, 5.0),
    "random": lambda x: x + torch.rand(2, device="cuda"),
    "sort": lambda x: x.sort().values.cumsum(0) + x.topk(2).values,
    "repeat": lambda x: x.repeat_interleave(2) + here(4),
    "repeat by lengths": lambda x: x.repeat_interleave(x.long(), output_size=2),
    "pinned and asynchronous": lambda x: x.copy_(torch.ones(2).pin_memory(), non_blocking=True),
    "asynchronous back": lambda x: x.to("cpu", non_blocking=True),
}
# how often the host waits
WAITING = {
    "item": (lambda x: x.sum().item(), 1),
    "float": (lambda x: float(x[0]), 1),
    "if": (lambda x: bool((x > 0).all()), 1),
    "equal": (lambda x: x.equal(x), 1),
    "tolist": (lambda x: x.tolist(), 1),
    "cpu": (lambda x: x.cpu(), 1),
    "to the host and back": (lambda x: x.to("cpu").to(x), 2),
    "to the device": (lambda x: torch.ones(2).cuda(), 1),
    "tensor": (lambda x: torch.tensor([1.0, 2.0], device="cuda"), 1),
    "as_tensor": (lambda x: torch.as_tensor(3.0, device=x.device), 1),
    "pageable": (lambda x: torch.ones(2).to("cuda", non_blocking=True), 1),
    "copy_": (lambda x: x.copy_(torch.ones(2)), 1),
    "a number set": (lambda x: x.__setitem__(0, 5.0), 1),
    "nonzero": (lambda x: x.nonzero(), 1),
    "where": (lambda x: torch.where(x > 0), 1),
    "unique": (lambda x: x.unique(), 1),
    "mask": (lambda x: x[x > 0], 1),
    "mask set": (lambda x: x.__setitem__(x > 0, x + 1), 1),
    "mask set to a number": (lambda x: x.__setitem__(x > 0, x.sum()), 1),
    "masked_select": (lambda x: x.masked_select(x > 0), 1),
    "index of the host": (lambda x: x[place()], 1),
    "repeat by lengths": (lambda x: x.repeat_interleave(x.long()), 1),
    "slice": (lambda x: torch.ones(3)[: x.long()[0]], 1),
    "synchronize": (lambda x: torch.cuda.synchronize(), 1),
    "stream": (lambda x: torch.cuda.Stream().synchronize(), 1),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", MIXED)
def test_what_mixes_devices_raises(device, kind, mode):
    with mode(), pytest.raises(MixedDevices):
        MIXED[kind](here(2))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", FINE)
def test_what_does_not_runs_without_a_wait(device, kind, mode):
    with mode():
        FINE[kind](here(2))
    assert not device.waits


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", WAITING)
def test_waits_are_counted_where_they_are(device, kind, mode):
    work, times = WAITING[kind]
    with mode():
        work(here(2))
    assert device.waits.total() == times
    assert all(site.startswith("tests/device/test_fake_device.py:") for site, _ in device.waits)


def test_a_backward_is_checked_too(device):
    class Leaking(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, delta):
            return delta * torch.ones(2)

    x = here(2).requires_grad_()
    (x * x).sum().backward()
    assert x.grad.is_cuda and not device.waits
    with pytest.raises(MixedDevices):
        Leaking.apply(x).sum().backward()


def test_where_tensors_are(device):
    model, host = torch.nn.Linear(2, 2).to("cuda"), torch.ones(2)
    x = model(here(2))
    assert {y.device for y in (*model.parameters(), x, x.detach()[0])} == {torch.device("cuda", 0)}
    assert x.is_cuda and x.get_device() == 0 and not x.is_cpu
    assert host.device == x.cpu().device == torch.empty_like(x, device="cpu").device == CPU
    assert host.is_cpu and host.get_device() == -1 and host.to("meta").is_meta
    assert torch.cuda.is_available() and is_torch_cuda_available()
    assert host.pin_memory().is_pinned() and torch.empty(2, pin_memory=True).is_pinned()
    with pytest.raises(TypeError, match="numpy"):
        x.detach().numpy()
    with pytest.raises(TypeError, match="numpy"):
        memoryview(x.detach().__array__())


CPU = torch.device("cpu")
OWNERS = [torch, torch.Tensor, torch.cuda, torch.cuda.nvtx, collectives, FakeGraph]


def names() -> list[dict[str, object]]:
    return [dict(vars(x)) for x in OWNERS]


def test_it_leaves_no_trace():
    """Neither after an error, nor in a module that took a function under it."""
    policy, before, asked = random_policy("llama"), names(), is_torch_cuda_available()
    with pytest.raises(MixedDevices), FakeDevice():
        under = names()
        policy.model.to("cuda")
        sample(policy, PROMPTS, 2, Decoding(4), 0)
        x = here(2)
        x + torch.ones(2)
    assert before == names() and is_torch_cuda_available() == asked
    pairs = zip(before, under, strict=True)
    new = [now[n] for old, now in pairs for n in now if old.get(n) is not now[n]]
    replaced = {id(x) for x in new if x not in (nullcontext, FakeGraph)}
    assert len(replaced) > 60
    held = [
        f"{module.__name__}.{name}"
        for module in list(sys.modules.values())
        for name, value in list(getattr(module, "__dict__", {}).items())
        if id(value) in replaced
    ]
    assert held == ["tests.fake_device._Stream"]  # its own
    assert policy.device == CPU and (x + torch.ones(2)).tolist() == [2.0, 2.0]


# -- a graph on the fake device -------------------------------------------------------------------


def test_a_graph_is_captured_and_replayed(device):
    x, step, graph = torch.zeros(2, device="cuda"), torch.tensor(1.0), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        assert torch.cuda.is_current_stream_capturing()
        made = torch.ones(2, device="cuda") * 2
        x.add_(step)  # the host's number, as it is now
        step.add_(1)  # the host works at once, and once
        assert step.tolist() == 2.0
    assert not torch.cuda.is_current_stream_capturing() and not device.waits
    assert x.tolist() == [0.0, 0.0] and made.isnan().all()
    for _ in range(3):
        graph.replay()
    assert x.tolist() == [3.0, 3.0] and made.tolist() == [2.0, 2.0] and step == 2


def test_a_graph_reads_pinned_memory_at_each_replay(device):
    x, pinned, graph = here(2), torch.zeros(2).pin_memory(), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        x.copy_(pinned, non_blocking=True)
    pinned.fill_(5)
    graph.replay()
    assert x.tolist() == [5.0, 5.0]


@pytest.mark.parametrize("kind", WAITING)
def test_a_wait_ends_a_capture(device, kind):
    x = here(2)
    with pytest.raises(Capturing):
        FakeGraph().capture(lambda: WAITING[kind][0](x))
