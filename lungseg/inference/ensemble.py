"""Predict prepared squares with one model or an ensemble."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lungseg.arrays import F32, U8
from lungseg.config.class_names import mirrored_order
from lungseg.inference.items import Prediction, PredictOptions
from lungseg.inference.member_selection import select_members
from lungseg.model.checkpoint import Checkpoint
from lungseg.model.checkpoint_io import load_model
from lungseg.model.precision import resolve_precision, scaled, to_network_input
from lungseg.model.trained_images import trained_images

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Predictor:
    """Loads a checkpoint once and predicts any number of batches."""

    def __init__(self, checkpoint: Checkpoint, options: PredictOptions | None = None) -> None:
        options = options or PredictOptions()
        self._device = torch.device(options.device)
        # A mirrored right lung looks like a left one: their outputs are exchanged.
        classes = checkpoint.preprocess.classes
        self._mirrored = mirrored_order(classes) if options.tta == "flip" else None
        self._dtype = _DTYPES.get(resolve_precision(options.precision, self._device))
        self._model = load_model(checkpoint, options.custom_network).to(  # type: ignore[call-overload]
            self._device, memory_format=torch.channels_last
        )
        self._model.eval()

    def probabilities(self, squares: Sequence[U8]) -> F32:
        """Predict prepared squares u8[S,S] to probabilities f32[B,K,S,S] of K classes."""
        return self.predict(to_network_input(squares, self._device)).cpu().numpy()

    @torch.inference_mode()
    def __call__(self, images: U8) -> F32:
        """Predict images u8[B,1,S,S] to probabilities f32[B,K,S,S], as the networks of other backends do."""
        return self._predict(scaled(torch.from_numpy(images).to(self._device))).cpu().numpy()

    @torch.inference_mode()
    def predict(self, images: Tensor) -> Tensor:
        """Predict images f32[B,1,S,S] in [0,1] to probabilities f32[B,K,S,S], both on the device."""
        probabilities = self._predict(images)
        if self._mirrored is None:
            return probabilities
        return (probabilities + self._predict(images.flip(-1)).flip(-1)[:, self._mirrored]) / 2

    def _predict(self, images: Tensor) -> Tensor:
        with torch.autocast(self._device.type, dtype=self._dtype, enabled=self._dtype is not None):
            logits = self._model(images)
        return torch.sigmoid(logits.float())


@dataclass(frozen=True)
class StartedBatch:
    """A batch that a device computes: probabilities f32[B,K,S,S] there; for each image, models and seen_in_training."""

    means: Tensor
    models: Sequence[int]
    seen: Sequence[bool]


class Ensemble:
    """Mean of several models. Models that were trained on an image are left out for it, unless all models were."""

    def __init__(self, checkpoints: Sequence[Checkpoint], options: PredictOptions | None = None) -> None:
        self.device = torch.device((options or PredictOptions()).device)
        self._classes = len(checkpoints[0].preprocess.classes)
        self._members = [(Predictor(checkpoint, options), trained_images(checkpoint)) for checkpoint in checkpoints]
        # So that a batch is copied while the GPU computes the one before.
        self._copies = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def __call__(self, squares: Sequence[U8], digests: Sequence[str]) -> list[Prediction]:
        """Predict prepared squares u8[S,S]; digests: Record.pixel_digest of each image."""
        batch = self.start(self.load(squares), digests)
        means = batch.means.cpu().numpy()
        return [Prediction(means[i], batch.models[i], batch.seen[i]) for i in range(len(squares))]

    def load(self, squares: Sequence[U8]) -> Tensor:
        """Copy prepared squares u8[S,S] to the device, u8[B,1,S,S]; on a GPU beside its work, and from any thread."""
        images = torch.from_numpy(np.stack(squares)[:, None])
        if self._copies is None:
            return images.to(self.device)
        with torch.cuda.stream(self._copies):
            return images.pin_memory().to(self.device, non_blocking=True)

    @torch.inference_mode()
    def start(self, images: Tensor, digests: Sequence[str]) -> StartedBatch:
        """Start to predict loaded images; a GPU computes them after this has returned."""
        if self._copies is not None:
            stream = torch.cuda.current_stream(self.device)
            stream.wait_stream(self._copies)
            images.record_stream(stream)
        selection = select_members([trained for _, trained in self._members], digests)
        totals = torch.zeros((len(images), self._classes, *images.shape[2:]), device=self.device)
        for (predictor, _), selected in zip(self._members, selection.images, strict=True):
            if selected:
                totals[selected] += predictor.predict(scaled(images[selected]))
        counts = torch.tensor(selection.counts, device=self.device)[:, None, None, None]
        return StartedBatch(totals / counts, selection.counts, selection.seen)
