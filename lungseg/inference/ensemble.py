"""Trained models behind one call: prepared squares in, probabilities, or masks at native size, out."""

import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from lungseg.arrays import F32, U8
from lungseg.imaging.geometry import restore
from lungseg.inference.items import OpenedImage, Prediction, PredictOptions
from lungseg.model.checkpoint import Checkpoint, trained_on
from lungseg.model.checkpoint_io import load_model
from lungseg.model.precision import resolve_precision, to_network_input
from lungseg.schema import Geometry

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Predictor:
    """Loads a checkpoint once and predicts batch after batch."""

    def __init__(self, checkpoint: Checkpoint, how: PredictOptions | None = None, threshold: float = 0.5) -> None:
        how = how or PredictOptions()
        self._device = torch.device(how.device)
        self._threshold = threshold
        self._flip = how.tta == "flip"
        self._dtype = _DTYPES.get(resolve_precision(how.precision, self._device))
        self._model = load_model(checkpoint).to(self._device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]

    def probabilities(self, squares: Sequence[U8]) -> F32:
        """Predict prepared squares u8[S,S] to lung probabilities f32[B,S,S]."""
        images = to_network_input(squares, self._device)
        with torch.inference_mode():
            found = self._predict(images)
            if self._flip:
                found = (found + self._predict(images.flip(-1)).flip(-1)) / 2
        return found[:, 0].cpu().numpy()

    def _predict(self, images: Tensor) -> Tensor:
        with torch.autocast(self._device.type, dtype=self._dtype, enabled=self._dtype is not None):
            logits = self._model(images)
        return torch.sigmoid(logits.float())

    def __call__(self, squares: Sequence[U8], geometries: Sequence[Geometry]) -> list[U8]:
        """Predict prepared squares u8[S,S] to masks u8[H,W] in {0,1}, each at its native size."""
        probabilities = self.probabilities(squares)
        pairs = zip(probabilities, geometries, strict=True)
        return [(restore(square, geometry) >= self._threshold).astype(np.uint8) for square, geometry in pairs]


class Ensemble:
    """The mean of several models; of those that were trained on a picture none counts for it, unless all were."""

    def __init__(self, checkpoints: Sequence[Checkpoint], how: PredictOptions | None = None) -> None:
        self._members = [(Predictor(found, how), trained_on(found)) for found in checkpoints]

    def __call__(self, squares: Sequence[U8], digests: Sequence[str]) -> list[Prediction]:
        """Predict prepared squares u8[S,S]; digests: of their pictures, as Record.pixel_digest."""
        seen = [all(digest in pictures for _, pictures in self._members) for digest in digests]
        totals = np.zeros((len(squares), *squares[0].shape), np.float32)
        counts = np.zeros(len(squares), np.int64)
        for predictor, pictures in self._members:
            asked = [i for i, digest in enumerate(digests) if seen[i] or digest not in pictures]
            if asked:
                totals[asked] += predictor.probabilities([squares[i] for i in asked])
                counts[asked] += 1
        means = totals / counts.astype(np.float32)[:, None, None]
        return [Prediction(means[i], int(counts[i]), seen[i]) for i in range(len(squares))]


def predict(ensemble: Ensemble, opened: Sequence[OpenedImage], batch: int) -> list[Prediction | None]:
    """Predict what can be predicted, `batch` squares a forward pass, over the gaps; None for the others."""
    found: list[Prediction | None] = [None] * len(opened)
    usable = [i for i, one in enumerate(opened) if one.square is not None]
    for start in range(0, len(usable), batch):
        chosen = usable[start : start + batch]
        squares = [square for i in chosen if (square := opened[i].square) is not None]
        began = time.perf_counter()
        predicted = ensemble(squares, [opened[i].record.pixel_digest for i in chosen])
        share = (time.perf_counter() - began) / len(chosen)
        for i, one in zip(chosen, predicted, strict=True):
            found[i] = replace(one, seconds=share)
    return found
