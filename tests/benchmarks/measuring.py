"""Clock and memory of benchmarks that take turns in one process."""

import statistics
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from trainers.plan.rehearsal import Ledger

Work = Callable[[], object]
Name = TypeVar("Name", bound=Hashable)


def clock(work: Work) -> float:
    """Seconds, to where a GPU has done it too."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.monotonic()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.monotonic() - start


def in_turn(works: Mapping[Name, Work], rounds: int, warm: int = 1) -> dict[Name, list[float]]:
    """Seconds of each, `rounds` times, one after the other."""
    seconds: dict[Name, list[float]] = {name: [] for name in works}
    for turn in range(warm + rounds):
        for name, work in works.items():
            spent = clock(work)
            if turn >= warm:
                seconds[name].append(spent)
    return seconds


def ratios(over: Sequence[float], under: Sequence[float], by: float = 1.0) -> list[str]:
    """Median and quartiles of `by` times over / under, pair by pair."""
    low, middle, high = statistics.quantiles(
        (by * a / b for a, b in zip(over, under, strict=True)), n=4
    )
    digits = 2 if middle < 10 else 1 if middle < 100 else 0
    return [f"{middle:.{digits}f}", f"{low:.{digits}f} – {high:.{digits}f}"]


def peak(model: Any, work: Work, held: Iterable[Tensor] = ()) -> int:
    """The most bytes that exist at once beside the model: those that torch's allocator counts on a
    GPU, those of all tensors that operations make on a CPU; and those of `held`, made before.
    """
    held = list(held)
    kept = sum(x.nbytes for x in held)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        torch.cuda.synchronize()
        return kept + torch.cuda.max_memory_allocated() - before
    ledger = Ledger()
    for tensor in [*model.parameters(), *model.buffers(), *held]:
        ledger.known(tensor)
    with ledger:
        work()
    return kept + ledger.peak
