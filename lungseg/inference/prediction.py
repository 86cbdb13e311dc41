"""Predict opened images with any ensemble. Does not import torch."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from lungseg.arrays import U8
from lungseg.inference.items import OpenedImage, Prediction

PredictBatch = Callable[[Sequence[U8], Sequence[str]], list[Prediction]]
"""An ensemble, called as in `Ensemble`."""


def predict(ensemble: PredictBatch, images: Sequence[OpenedImage], batch_size: int) -> list[Prediction | None]:
    """Predict all images that have a square; None for the others. Batches skip images without a square."""
    predictions: list[Prediction | None] = [None] * len(images)
    usable = [(i, image.square) for i, image in enumerate(images) if image.square is not None]
    for start in range(0, len(usable), batch_size):
        batch = usable[start : start + batch_size]
        began = time.perf_counter()
        results = ensemble([square for _, square in batch], [images[i].record.pixel_digest for i, _ in batch])
        share = (time.perf_counter() - began) / len(batch)
        for (i, _), prediction in zip(batch, results, strict=True):
            predictions[i] = replace(prediction, seconds=share)
    return predictions
