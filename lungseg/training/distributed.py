"""What an engine needs of the other ranks: who am I, give me all, wait for all. One process alone is rank 0 of 1."""

from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn

T = TypeVar("T")


def rank_and_world_size() -> tuple[int, int]:
    """Rank of this process, and how many there are."""
    return (dist.get_rank(), dist.get_world_size()) if _together() else (0, 1)


def gather(value: T) -> list[T]:
    """Every rank's value, in the order of ranks, on every rank."""
    if not _together():
        return [value]
    values: list[T] = [value] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def wait_for_all_ranks() -> None:
    """Return once every rank has come here."""
    if _together():
        dist.barrier()


def broadcast_buffers(model: nn.Module) -> None:
    """Give every rank the batch statistics of rank 0: the ones that its checkpoint holds."""
    if _together():
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)


def wrap_for_ddp(model: nn.Module, device: torch.device) -> nn.Module:
    """Wrap a model for DDP where there are several ranks."""
    if rank_and_world_size()[1] == 1:
        return model
    ids = [device.index] if device.type == "cuda" else None
    # With this flag DDP keeps its first buckets. It would regroup them after one step, so that the sums of three ranks
    # and more would be rounded otherwise in the first step after a restart.
    return nn.parallel.DistributedDataParallel(model, device_ids=ids, find_unused_parameters=True)


def _together() -> bool:
    return dist.is_available() and dist.is_initialized()
