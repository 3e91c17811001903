"""Who works beside whom, and what they tell each other."""

import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def share(item: Any) -> Any:
    """Rank 0's item, on every rank."""
    items = [item]
    torch.distributed.broadcast_object_list(items)
    return items[0]


def once_a_host(make: Callable[[], T]) -> T:
    """What `make` gives, on every rank: on each host one rank makes it for all to find."""
    first = os.environ["LOCAL_RANK"] == "0"
    made = make() if first else None
    torch.distributed.barrier()
    return make() if made is None else made


class Ranks:
    """Who works beside whom, and on which device."""

    def __init__(self) -> None:
        self.rank, self.world = torch.distributed.get_rank(), torch.distributed.get_world_size()
        local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        self.device = (
            torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")
        )
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)

    def reduce(self, x: Tensor, how: str = "sum") -> Tensor:
        """The sum or maximum over ranks."""
        x = x.to(self.device)
        op = {"sum": torch.distributed.ReduceOp.SUM, "max": torch.distributed.ReduceOp.MAX}[how]
        torch.distributed.all_reduce(x, op)
        return x.cpu()

    def barrier(self) -> None:
        torch.distributed.barrier()

    def total(self, x: Tensor) -> Tensor:
        """The sum over ranks, in place and on the device."""
        torch.distributed.all_reduce(x)
        return x

    def broadcast(self, x: Tensor | None) -> Tensor:
        """Rank 0's tensor, on every rank's device."""
        shape, dtype = share(None if x is None else (x.shape, x.dtype))
        y = torch.empty(shape, dtype=dtype, device=self.device) if x is None else x.to(self.device)
        torch.distributed.broadcast(y, 0)
        return y

    def gather(self, item: Any) -> list[Any]:
        """Everybody's item, in the order of the ranks, on every rank."""
        if self.world == 1:  # pickling it for nobody takes longer than many a step's arithmetic
            return [item]
        items: list[Any] = [None] * self.world
        torch.distributed.all_gather_object(items, item)
        return items

    def in_place(self, mine: Sequence[int], values: Tensor, total: int) -> Tensor:
        """Put everybody's rows, one for each of `mine`, in the order of all `total` prompts."""
        whole = values.new_zeros(total, *values.shape[1:])
        for places, part in self.gather((list(mine), values)):
            whole[places] = part
        return whole

    def list_in_place(self, mine: Sequence[int], values: Sequence[T], total: int) -> list[T]:
        """Put everybody's items, one for each of `mine`, in the order of all `total` prompts."""
        whole = dict[int, T]()
        for places, part in self.gather((list(mine), list(values))):
            whole |= zip(places, part, strict=True)
        return [whole[i] for i in range(total)]
