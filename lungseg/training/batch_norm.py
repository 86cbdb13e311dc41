"""Batch normalisation of a run: with the statistics of each rank, of all ranks, or fixed ones."""

from typing import Literal

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from lungseg.config import TrainSettings
from lungseg.errors import ResourceError
from lungseg.model.lazy_imports import norm_act
from lungseg.model.network import LungNetwork

ENOUGH_IMAGES = 8  # of a rank, for statistics of its own: the batch of the recipes
BatchNorm = Literal["local", "sync", "frozen"]


def resolve_batch_norm(settings: TrainSettings, on_gpus: bool) -> BatchNorm:
    """Resolve `auto`: local statistics from 8 images a rank; over all ranks of a run on several GPUs for fewer images.

    Synchronised statistics need every rank in each forward pass, so a run that may lose ranks never has them: some of
    its ranks would take more passes than others, and wait for ever. The result depends on the planned ranks, not on
    those present.

    Raises:
        ResourceError: sync on fewer than two GPUs.

    """
    mode, has_several_gpus = settings.compute.batch_norm, on_gpus and settings.planned_world_size > 1
    if mode == "sync" and not has_several_gpus:
        raise ResourceError("--compute.batch-norm sync needs several GPUs: pass auto, local or frozen")
    if mode != "auto":
        return mode
    synchronises = has_several_gpus and settings.rank_batch_size < ENOUGH_IMAGES and not settings.may_lose_ranks
    return "sync" if synchronises else "local"


def with_batch_norm(model: LungNetwork, mode: BatchNorm) -> LungNetwork:
    """Return the network with its batch norms synchronised over all ranks for `sync`, else as it is."""
    if mode == "sync":
        # torch's own conversion would drop the activation that is part of timm's batch norm.
        return norm_act.convert_sync_batchnorm(model)  # type: ignore[no-any-return,no-untyped-call]
    return model


def set_training(model: nn.Module, mode: BatchNorm) -> None:
    """Set training mode; frozen batch norm keeps its statistics, but its scale and shift are still trained."""
    model.train()
    if mode == "frozen":
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
