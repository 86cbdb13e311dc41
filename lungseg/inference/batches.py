"""Predict the images of a part in batches, while the next batch is loaded and the last one is read."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from lungseg.errors import ResourceError
from lungseg.inference.ensemble import Ensemble, StartedBatch
from lungseg.inference.items import LEVELS, OpenedImage, PredictedImage

StartBatch = Callable[[Tensor, Sequence[str]], StartedBatch]
"""As `Ensemble.start`."""


@dataclass(frozen=True)
class _Batch:
    """The numbers of its images, and levels, i16[B,K,S,S] with the bits of u16; ready: when a GPU has copied them."""

    numbers: Sequence[int]
    started: StartedBatch
    levels: Tensor
    ready: torch.cuda.Event | None

    def read(self, began: float) -> Iterator[tuple[int, PredictedImage]]:
        """Wait for the device; yield the number and the result of each image. began: when the last batch was read."""
        if self.ready is not None:
            self.ready.synchronize()
        levels, share = self.levels.numpy(), (time.perf_counter() - began) / len(self.numbers)
        for place, number in enumerate(self.numbers):
            models, seen = self.started.models[place], self.started.seen[place]
            details = {"models": models, "seen_in_training": seen, "seconds": share}
            yield number, PredictedImage(levels[place].tobytes(), json.dumps(details))


class BatchPredictor:
    """Predicts opened images in batches. Halves the batch when the device has too little memory for it."""

    def __init__(self, ensemble: Ensemble, batch_size: int) -> None:
        self.batch_size, self.start = batch_size, ensemble.start
        self._ensemble = ensemble
        self._loader = ThreadPoolExecutor(1)

    def __call__(self, images: Sequence[OpenedImage], start: StartBatch | None = None) -> list[PredictedImage | None]:
        """Predict all images that have a square; None for the others. start: how a batch is started, if not as usual.

        Raises:
            ResourceError: the device has too little memory for one image.

        """
        results: list[PredictedImage | None] = [None] * len(images)
        began = time.perf_counter()
        for batch in self._batches(images, start or self.start):
            for number, result in batch.read(began):
                results[number] = result
            began = time.perf_counter()
        return results

    def _batches(self, images: Sequence[OpenedImage], start: StartBatch) -> Iterator[_Batch]:
        """Yield each batch after the next one was started, so that a GPU computes while its results are read."""
        usable = [number for number, image in enumerate(images) if image.square is not None]
        running: _Batch | None = None
        position = 0
        loaded = self._load(images, usable[: self.batch_size])
        while position < len(usable):
            numbers = usable[position : position + self.batch_size]
            following = self._load(images, usable[position + len(numbers) :][: self.batch_size])
            try:
                batch = _read_back(numbers, start(loaded.result(), [images[i].record.pixel_digest for i in numbers]))
            except torch.OutOfMemoryError:
                batch = None
            if running is not None:
                yield running
            running = batch
            if batch is None:
                self._halve()
                loaded = self._load(images, usable[position:][: self.batch_size])
            else:
                loaded, position = following, position + len(numbers)
        if running is not None:
            yield running

    def _load(self, images: Sequence[OpenedImage], numbers: Sequence[int]) -> Future[Tensor]:
        squares = [square for square in (images[number].square for number in numbers) if square is not None]
        return self._loader.submit(self._ensemble.load, squares) if squares else Future()

    def _halve(self) -> None:
        if self.batch_size == 1:
            raise ResourceError(
                "the GPU has too little memory for one image: end other programs on it, pass --gpus-per-actor 1, or "
                "use a GPU with more memory"
            )
        self.batch_size //= 2
        if self._ensemble.device.type == "cuda":
            torch.cuda.empty_cache()


def _read_back(numbers: Sequence[int], started: StartedBatch) -> _Batch:
    """Start the copy of a batch's levels; they are rounded on the device, which halves the copy."""
    # torch computes little with u16: the lower 16 bits of an i32 are the same.
    levels = torch.round(started.means * LEVELS).to(torch.int32).to(torch.int16)
    if levels.device.type != "cuda":
        return _Batch(numbers, started, levels, None)
    copied = torch.empty(levels.shape, dtype=levels.dtype, pin_memory=True)
    copied.copy_(levels, non_blocking=True)
    ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
    ready.record(torch.cuda.current_stream(levels.device))
    return _Batch(numbers, started, copied, ready)
