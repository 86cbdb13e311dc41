"""One pass over data: train_batches and evaluate."""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lungseg.arrays import Row
from lungseg.config.precision import Precision
from lungseg.errors import LungsegError
from lungseg.model.precision import AUTOCAST_DTYPES
from lungseg.schema import Sample
from lungseg.training.distributed import gather, gather_on_first_rank
from lungseg.training.loader import Batch

_MAX_PENDING_BATCHES = 4  # predictions waiting to be measured; a fast GPU would otherwise fill the memory
_REPORT_INTERVAL = 20  # batches; reading the loss waits for the GPU

TrainOnBatch = Callable[[Batch, float], Tensor]
ReportLoss = Callable[[int, float], None]
Measure = Callable[[Sample, NDArray[np.float32]], list[Row]]
"""Returns the rows of a sample, one for each annotated class, given its predicted probabilities f32[K,S,S]."""


def train_batches(
    train_on_batch: TrainOnBatch,
    batches: Iterable[Batch],
    rates: Iterable[float],
    seeds: Iterable[int],
    report_loss: ReportLoss,
) -> tuple[float, int]:
    """Train on every batch; return the sum of the losses over the images of all ranks, and the number of images.

    seeds: one per batch, for dropout, so that a resumed run draws the same values.

    Raises:
        LungsegError: the loss is not finite.

    """
    total, images = torch.zeros((), dtype=torch.float64), 0
    for index, (batch, rate, seed) in enumerate(zip(batches, rates, seeds, strict=True)):
        torch.manual_seed(seed)
        losses = train_on_batch(batch, rate)
        total = total.to(losses.device) + losses.sum().double()
        images += len(losses)
        if losses.device.type == "cpu" or index % _REPORT_INTERVAL == 0:
            report_loss(index + 1, _require_finite(float(losses.mean()), rate))
    # Summed in rank order, so that every rank has the same total, also after a restart.
    totals = gather((float(total), images))
    _require_finite(sum(loss for loss, _ in totals), math.nan)
    return math.fsum(loss for loss, _ in totals), sum(count for _, count in totals)


def evaluate(
    model: nn.Module, batches: Iterable[Batch], measure: Measure, threads: int = 1, precision: Precision = "fp32"
) -> list[Row]:
    """Measure every image of all ranks once; return the rows of all ranks on rank 0, none on the others.

    Rows are sorted by image, and for an image in the order of the classes.

    `measure` runs in threads while the network predicts.
    """
    device = next(model.parameters()).device
    model.eval()
    with ThreadPoolExecutor(threads, thread_name_prefix="measure") as pool:
        own: list[Row] = []
        pending: deque[Iterator[list[Row]]] = deque()
        for batch in batches:
            pending.append(pool.map(measure, batch.samples, _predict(model, batch, device, precision)))
            if len(pending) > _MAX_PENDING_BATCHES:
                own += chain.from_iterable(pending.popleft())
        own += [row for measured in pending for rows in measured for row in rows]
    rows = [row for rank_rows in gather_on_first_rank(own) for row in rank_rows]
    return sorted(rows, key=lambda row: (row["dataset"], row["image_id"]))


@torch.inference_mode()
def _predict(model: nn.Module, batch: Batch, device: torch.device, precision: Precision) -> NDArray[np.float32]:
    images, _ = batch.to(device)
    dtype = AUTOCAST_DTYPES.get(precision)
    with torch.autocast(device.type, dtype, enabled=dtype is not None):
        logits = model(images)
    return torch.sigmoid(logits.float()).cpu().numpy()


def _require_finite(loss: float, rate: float) -> float:
    if not math.isfinite(loss):
        current = "" if math.isnan(rate) else f" (now {rate:.2g})"
        raise LungsegError(f"the loss became {loss}: lower --optim.lr{current}, and check the masks")
    return loss
