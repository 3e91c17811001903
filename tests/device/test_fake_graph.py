"""The stand-in for a CUDA graph does what a CUDA graph does, and fails where one fails."""

import pytest
import torch
from torch import Tensor

from tests.fake_graph import Capturing, FakeGraph


def captured(function) -> FakeGraph:
    graph = FakeGraph()
    graph.capture(function)
    return graph


def test_a_capture_changes_nothing():
    x, ones = torch.zeros(3), torch.ones(3)
    state = torch.random.get_rng_state()
    graph = captured(lambda: x.add_(ones).add_(torch.rand(3)))
    assert x.equal(torch.zeros(3)) and state.equal(torch.random.get_rng_state())
    graph.replay()
    assert not x.equal(torch.zeros(3))


def test_updates_in_place_accumulate():
    x, step = torch.zeros(3), torch.tensor([1.0, 2.0, 3.0])
    rows, place = torch.zeros(2, 4), torch.zeros(1, dtype=torch.long)

    def move():
        x.add_(step)
        rows.index_copy_(1, place, x[:2, None])
        place.add_(1)

    graph = captured(move)
    for _ in range(3):
        graph.replay()
    assert x.equal(3 * step) and place.item() == 3
    assert rows.equal(torch.tensor([[1.0, 2.0, 3.0, 0.0], [2.0, 4.0, 6.0, 0.0]]))
    step.fill_(0.0)  # an input that the host writes between two replays
    graph.replay()
    assert x.equal(torch.tensor([3.0, 6.0, 9.0])) and rows[0, 3] == 3.0


def test_results_stay_at_their_address_and_hold_garbage_before_a_replay():
    x, out = torch.zeros(3), []
    graph = captured(lambda: out.append((x + 1).view(3, 1)))
    (y,) = out
    assert y.isnan().all()
    address = y.data_ptr()
    for value in (1.0, 5.0):
        x.fill_(value)
        graph.replay()
        assert y.data_ptr() == address and y.equal(torch.full((3, 1), value + 1))


def test_python_runs_at_the_capture_alone():
    x, calls, state = torch.zeros(1), [], {"step": 1.0}

    def function():
        calls.append(state["step"])
        x.add_(state["step"])
        state["step"] += 1

    graph = captured(function)
    state["step"] = 100.0
    graph.replay()
    graph.replay()
    assert calls == [1.0] and x.item() == 2.0  # the step of the capture, twice


@pytest.mark.parametrize("grad", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_a_model_with_a_gradient_replays_as_it_runs(grad):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.LayerNorm(8), torch.nn.Linear(8, 2))
    x, found = torch.randn(3, 4), {}

    def function(found: dict[str, Tensor] = found):
        found["y"] = model(x).log_softmax(1)
        if found["y"].requires_grad:
            (found["g"],) = torch.autograd.grad(found["y"][:, 0].sum(), model[0].weight)

    with grad():
        graph = captured(function)
    x.copy_(torch.randn(3, 4))
    graph.replay()
    expected: dict[str, Tensor] = {}
    with grad():
        function(expected)
    assert found.keys() == expected.keys()
    assert all(found[key].equal(expected[key]) for key in expected)


MASK = torch.tensor([True, False, True])
SYNCHRONISING = {
    "item": lambda x: x.sum().item(),
    "bool": lambda x: bool(x.sum() > 0),
    "tolist": lambda x: x.tolist(),
    "numpy": lambda x: x.numpy(),
    "cpu": lambda x: x.cpu(),
    "nonzero": lambda x: x.nonzero(),
    "mask": lambda x: x[MASK],
    "mask put": lambda x: x.__setitem__(MASK, x[:2]),
    "unique": lambda x: torch.unique(x),
    "equal": lambda x: torch.equal(x, x + 1),
    "repeat": lambda x: x.repeat_interleave(MASK.long()),
    "from the host": lambda x: x.add_(torch.tensor([1.0, 2.0, 3.0])),
    "capture": lambda x: FakeGraph().capture(lambda: x.add_(1)),
}


@pytest.mark.parametrize("grad", [torch.inference_mode, torch.no_grad])
@pytest.mark.parametrize("kind", SYNCHRONISING)
def test_a_wait_for_the_device_raises_and_leaves_all_as_it_was(kind, grad):
    x, graph = torch.zeros(3), FakeGraph()

    def function():
        x.add_(1)
        SYNCHRONISING[kind](x)

    with grad(), pytest.raises(Capturing, match="not permitted"):
        graph.capture(function)
    assert x.tolist() == [0.0, 0.0, 0.0]  # and the readers are back
    with pytest.raises(RuntimeError, match="without a preceding"):
        graph.replay()


def test_what_does_not_wait_is_captured():
    x = torch.arange(3.0)

    def function():
        x[MASK] = 7.0  # a masked fill
        x.add_(x.where(MASK, 0.0)[torch.zeros_like(x).long()].cumsum(0))
        x.repeat_interleave(2)

    graph = captured(function)
    graph.replay()
    assert x.tolist() == [14.0, 15.0, 28.0]
