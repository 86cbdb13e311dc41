"""Predict with ONNX Runtime or OpenVINO, as ensemble.py and batches.py do with torch. Does not import torch."""

import json
from collections.abc import Sequence
from typing import cast

import numpy as np

from lungseg.arrays import F32, U8
from lungseg.config.class_names import mirrored_order
from lungseg.inference.backends import Network, Runtime, open_network
from lungseg.inference.items import OpenedImage, PredictedImage, Prediction, PredictOptions, to_levels
from lungseg.inference.member_selection import select_members
from lungseg.inference.prediction import predict
from lungseg.model.checkpoint import Checkpoint
from lungseg.model.onnx_cache import find_or_export
from lungseg.model.trained_images import trained_images


class RuntimeEnsemble:
    """Mean of several models, as `Ensemble`, in the backend that the options name."""

    def __init__(self, checkpoints: Sequence[Checkpoint], options: PredictOptions, threads: int = 0) -> None:
        """Load the models, converting those that were not yet. threads: 0 for all CPUs of this process.

        Raises:
            LungsegError: a model cannot be loaded, or the backend is not installed.

        """
        classes = checkpoints[0].preprocess.classes
        self._classes = len(classes)
        self._mirrored = mirrored_order(classes) if options.tta == "flip" else None  # as in `Predictor`
        runtime = cast(Runtime, options.backend)
        paths = [find_or_export(checkpoint, options.custom_network).path for checkpoint in checkpoints]
        self._networks: list[Network] = [open_network(path, runtime, threads) for path in paths]
        self._trained = [trained_images(checkpoint) for checkpoint in checkpoints]

    def __call__(self, squares: Sequence[U8], digests: Sequence[str]) -> list[Prediction]:
        """Predict prepared squares u8[S,S]; digests: Record.pixel_digest of each image."""
        images = np.stack(squares)[:, None]
        selection = select_members(self._trained, digests)
        totals = np.zeros((len(images), self._classes, *images.shape[2:]), np.float32)
        for network, numbers in zip(self._networks, selection.images, strict=True):
            if numbers:
                totals[numbers] += self._predict(network, images[numbers])
        means = totals / np.array(selection.counts, np.float32)[:, None, None, None]
        return [Prediction(*values) for values in zip(means, selection.counts, selection.seen, strict=True)]

    def _predict(self, network: Network, images: U8) -> F32:
        probabilities = network(images)
        if self._mirrored is None:
            return probabilities
        mirrored: F32 = network(np.ascontiguousarray(images[..., ::-1]))[:, self._mirrored, :, ::-1]
        return (probabilities + mirrored) / np.float32(2)


class RuntimeBatchPredictor:
    """Predicts opened images in batches, as `BatchPredictor`."""

    def __init__(self, ensemble: RuntimeEnsemble, batch_size: int) -> None:
        self.batch_size = batch_size
        self._ensemble = ensemble

    def __call__(self, images: Sequence[OpenedImage]) -> list[PredictedImage | None]:
        """Predict all images that have a square; None for the others."""
        predictions = predict(self._ensemble, images, self.batch_size)
        return [None if prediction is None else _packed(prediction) for prediction in predictions]


def _packed(prediction: Prediction) -> PredictedImage:
    details = {
        "models": prediction.models,
        "seen_in_training": prediction.seen_in_training,
        "seconds": prediction.seconds,
    }
    return PredictedImage(to_levels(prediction.probability).tobytes(), json.dumps(details))
