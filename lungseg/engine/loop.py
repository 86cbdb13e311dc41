"""One pass over data: train_epoch and evaluate."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from lungseg.config import LossSettings, OptimSettings
from lungseg.data.loader import Batch
from lungseg.engine.ranks import gather, rank_and_world
from lungseg.errors import LungsegError
from lungseg.model import metrics
from lungseg.model.losses import bce_dice
from lungseg.schema import Sample

_WARM_UP = 0.1  # share of a one-cycle run's steps that the learning rate rises

Row = dict[str, Any]
StepDone = Callable[[float], None]


def learning_rate(step: int, total: int, settings: OptimSettings) -> float:
    """Learning rate of one step of `total`: constant, or up in a line and down in a half cosine to nearly 0.

    A function of the step alone, so that a run goes on after a restart as if nothing had been. Source of one-cycle:
    Smith, arXiv 1803.09820.
    """
    if settings.schedule == "constant":
        return settings.lr
    rise = max(1, round(total * _WARM_UP))
    if step < rise:
        return settings.lr * (step + 1) / rise
    return settings.lr * 0.5 * (1.0 + math.cos(math.pi * (step - rise) / max(1, total - rise)))


def train_epoch(
    model: nn.Module,
    batches: Iterable[Batch],
    optimizer: torch.optim.Optimizer,
    loss: LossSettings,
    rates: Iterable[float],
    step_done: StepDone,
) -> float:
    """Take one optimizer step a batch; return the mean loss over all ranks' images.

    Each step's gradient is that of the mean over the images of all ranks: DDP averages over ranks, whose batches may
    differ by one image, so each rank's sum is scaled by world size / global batch.

    Raises:
        LungsegError: the loss is not finite.

    """
    world = rank_and_world()[1]
    device = next(model.parameters()).device
    model.train()
    total = torch.zeros(2, dtype=torch.float64)
    for batch, rate in zip(batches, rates, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = rate
        images = batch.images.to(device, non_blocking=True, memory_format=torch.channels_last)
        losses = bce_dice(model(images), batch.masks.to(device, non_blocking=True), loss)
        optimizer.zero_grad(set_to_none=True)
        (losses.sum() * (world / batch.global_size)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        mean = float(losses.detach().mean())
        if not math.isfinite(mean):
            raise LungsegError(f"the loss became {mean}: lower --optim.lr (now {rate:.2g}), and check the masks")
        total += torch.tensor([float(losses.detach().sum()), len(losses)], dtype=torch.float64)
        step_done(mean)
    summed = torch.stack(gather(total)).sum(0)
    return float(summed[0] / summed[1])


@torch.inference_mode()
def evaluate(model: nn.Module, batches: Iterable[Batch], threshold: float) -> list[Row]:
    """Measure every image of all ranks' batches once: one row an image with its counts, dice, iou and pixel accuracy.

    At prepared resolution, over the picture without its padding. Rows come sorted, the same on every rank.
    """
    device = next(model.parameters()).device
    model.eval()
    own: list[Row] = []
    for batch in batches:
        images = batch.images.to(device, non_blocking=True, memory_format=torch.channels_last)
        predictions = (torch.sigmoid(model(images)) >= threshold).to(torch.uint8).cpu().numpy()
        own += [_measure(sample, predictions[i, 0]) for i, sample in enumerate(batch.samples)]
    rows = [row for part in gather(own) for row in part]
    return sorted(rows, key=lambda row: (row["dataset"], row["image_id"]))


def averages(rows: list[Row]) -> dict[str, float]:
    """Per-image means of dice, iou and pixel accuracy."""
    return {name: metrics.mean([row[name] for row in rows]) for name in ("dice", "iou", "pixel_accuracy")}


def _measure(sample: Sample, prediction: Any) -> Row:
    assert sample.mask is not None, "training refuses data without masks before it starts"
    area = sample.geometry.content()
    counts = metrics.count_pixels(prediction[area], sample.mask[area])
    return {
        "image_id": sample.image_id,
        "dataset": sample.dataset,
        "patient_id": sample.patient_id,
        **{name: getattr(counts, name) for name in ("tp", "fp", "fn", "tn")},
        "dice": metrics.dice(counts),
        "iou": metrics.iou(counts),
        "pixel_accuracy": metrics.pixel_accuracy(counts),
    }
