"""One pass over data: train_batches and evaluate."""

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lungseg.errors import LungsegError
from lungseg.schema import Sample
from lungseg.training.distributed import gather
from lungseg.training.loader import Batch

_WAITING = 4  # batches whose rows are being made; without a bound a fast GPU would fill the memory with predictions
_ASKED_EVERY = 20  # batches; asking a GPU for the loss more often would make it wait

Row = dict[str, Any]
TrainOnBatch = Callable[[Batch, float], Tensor]
ReportLoss = Callable[[int, float], None]
Measure = Callable[[Sample, NDArray[np.float32]], Row]
"""Makes a row of a sample and the probabilities f32[S,S] predicted for it."""


class BatchClock:
    """How long something takes, and how much of that is spent waiting for batches."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self.waited = 0.0

    @property
    def seconds(self) -> float:
        """Since this clock was made."""
        return max(time.monotonic() - self._began, 1e-9)

    def waiting(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Pass batches on, and add up how long each is waited for."""
        source = iter(batches)
        while True:
            began = time.monotonic()
            batch = next(source, None)
            self.waited += time.monotonic() - began
            if batch is None:
                return
            yield batch


def train_batches(
    learn: TrainOnBatch, batches: Iterable[Batch], rates: Iterable[float], seeds: Iterable[int], batch_done: ReportLoss
) -> tuple[float, int]:
    """Learn from every batch; return the sum of the losses of all ranks' images, and how many there were.

    `seeds` are of dropout, one a batch, so that a run that goes on repeats what it would have done.

    Raises:
        LungsegError: the loss is not finite.

    """
    total, images = torch.zeros((), dtype=torch.float64), 0
    for number, (batch, rate, seed) in enumerate(zip(batches, rates, seeds, strict=True)):
        torch.manual_seed(seed)
        losses = learn(batch, rate)
        total = total.to(losses.device) + losses.sum().double()
        images += len(losses)
        if losses.device.type == "cpu" or number % _ASKED_EVERY == 0:
            batch_done(number + 1, _finite(float(losses.mean()), rate))
    # Added up in the order of ranks: the same sum on each of them, and after a restart.
    parts = gather((float(total), images))
    _finite(sum(part for part, _ in parts), math.nan)
    return math.fsum(part for part, _ in parts), sum(count for _, count in parts)


def evaluate(model: nn.Module, batches: Iterable[Batch], measure: Measure, threads: int = 1) -> list[Row]:
    """Measure every image of all ranks' batches once, in threads beside the network: rows sorted, the same everywhere.

    In fp32, as jobs/infer.py predicts by default, whatever the training's precision.
    """
    device = next(model.parameters()).device
    model.eval()
    with ThreadPoolExecutor(threads, thread_name_prefix="measure") as pool:
        own: list[Row] = []
        waiting: deque[Iterator[Row]] = deque()
        for batch in batches:
            waiting.append(pool.map(measure, batch.samples, _predict(model, batch, device)))
            if len(waiting) > _WAITING:
                own += waiting.popleft()
        own += [row for rows in waiting for row in rows]
    rows = [row for part in gather(own) for row in part]
    return sorted(rows, key=lambda row: (row["dataset"], row["image_id"]))


@torch.inference_mode()
def _predict(model: nn.Module, batch: Batch, device: torch.device) -> NDArray[np.float32]:
    images, _ = batch.to(device)
    return torch.sigmoid(model(images))[:, 0].float().cpu().numpy()


def _finite(loss: float, rate: float) -> float:
    if not math.isfinite(loss):
        now = "" if math.isnan(rate) else f" (now {rate:.2g})"
        raise LungsegError(f"the loss became {loss}: lower --optim.lr{now}, and check the masks")
    return loss
