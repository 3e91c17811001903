"""The ranks and the collectives between them."""

import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def share(item: Any) -> Any:
    """Return rank 0's item on every rank."""
    items = [item]
    torch.distributed.broadcast_object_list(items)
    return items[0]


def once_a_host(make: Callable[[], T]) -> T:
    """Return the result of `make` on every rank; one rank of each host calls it first."""
    first = os.environ["LOCAL_RANK"] == "0"
    made = make() if first else None
    torch.distributed.barrier()
    return make() if made is None else made


class Ranks:
    """The rank of this process, the number of ranks, and the device."""

    def __init__(self) -> None:
        self.rank, self.world = torch.distributed.get_rank(), torch.distributed.get_world_size()
        local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        self.device = (
            torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")
        )
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)

    def reduce(self, x: Tensor, how: str = "sum") -> Tensor:
        """Return the sum, maximum or minimum over ranks, on the CPU."""
        x = x.to(self.device)
        torch.distributed.all_reduce(x, getattr(torch.distributed.ReduceOp, how.upper()))
        return x.cpu()

    def barrier(self) -> None:
        torch.distributed.barrier()

    def total(self, x: Tensor) -> Tensor:
        """Return the sum over ranks, computed in place and on the device."""
        torch.distributed.all_reduce(x)
        return x

    def broadcast(self, x: Tensor | None) -> Tensor:
        """Return rank 0's tensor on every rank's device."""
        shape, dtype = share(None if x is None else (x.shape, x.dtype))
        y = torch.empty(shape, dtype=dtype, device=self.device) if x is None else x.to(self.device)
        torch.distributed.broadcast(y, 0)
        return y

    def gather(self, item: Any) -> list[Any]:
        """Return the items of all ranks, in the order of the ranks, on every rank."""
        if self.world == 1:  # pickling for no other rank can take longer than a step's arithmetic
            return [item]
        items: list[Any] = [None] * self.world
        torch.distributed.all_gather_object(items, item)
        return items

    def in_place(self, mine: Sequence[int], values: Tensor, total: int) -> Tensor:
        """Return the rows of all ranks, one for each of `mine`, in the order of all prompts."""
        gathered = values.new_zeros(total, *values.shape[1:])
        for places, part in self.gather((list(mine), values)):
            gathered[places] = part
        return gathered

    def list_in_place(self, mine: Sequence[int], values: Sequence[T], total: int) -> list[T]:
        """Return the items of all ranks, one for each of `mine`, in the order of all prompts."""
        gathered = dict[int, T]()
        for places, part in self.gather((list(mine), list(values))):
            gathered |= zip(places, part, strict=True)
        return [gathered[i] for i in range(total)]
