"""Communication between ranks; a process on its own is rank 0 of 1."""

from collections.abc import Callable
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import nn

T = TypeVar("T")


def rank_and_world_size() -> tuple[int, int]:
    """Return the rank of this process and the number of ranks."""
    return (dist.get_rank(), dist.get_world_size()) if _is_distributed() else (0, 1)


def gather(value: T) -> list[T]:
    """Return the values of all ranks, in rank order, on every rank."""
    if not _is_distributed():
        return [value]
    values: list[T] = [value] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def gather_on_first_rank(value: T) -> list[T]:
    """Return the values of all ranks, in rank order, on rank 0; an empty list on the others, which save the memory."""
    if not _is_distributed():
        return [value]
    is_first = dist.get_rank() == 0
    values: list[T] = [value] * (dist.get_world_size() if is_first else 0)
    dist.gather_object(value, values if is_first else None, dst=0)
    return values


def on_first_rank(compute: Callable[[], T]) -> T:
    """Call a function on rank 0 and return its value on every rank; every rank calls this."""
    if not _is_distributed():
        return compute()
    values: list[T | None] = [compute() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(values, src=0)
    return cast(T, values[0])


def wait_for_all_ranks() -> None:
    """Return once every rank has called this."""
    if _is_distributed():
        dist.barrier()


def broadcast_buffers(model: nn.Module) -> None:
    """Copy the batch norm statistics of rank 0, which its checkpoint holds, to every rank."""
    if _is_distributed():
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)


def wrap_for_ddp(model: nn.Module, device: torch.device, find_unused: bool) -> nn.Module:
    """Wrap a model for DDP if there are several ranks.

    find_unused: search each step for parameters without a gradient. It also keeps DDP from regrouping its buckets after
    the first step: with three or more ranks the new groups round sums differently in the first step after a restart.
    """
    if rank_and_world_size()[1] == 1:
        return model
    ids = [device.index] if device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(model, device_ids=ids, find_unused_parameters=find_unused)


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()
