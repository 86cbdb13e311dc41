"""A trained model behind one call: prepared squares in, masks at native size out."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from lungseg.data.preprocess import restore
from lungseg.engine.checkpoint import Checkpoint, load_model
from lungseg.schema import Geometry

U8 = NDArray[np.uint8]


class Predictor:
    """Loads a checkpoint once and predicts batch after batch."""

    def __init__(self, checkpoint: Checkpoint, device: str = "cpu", threshold: float = 0.5) -> None:
        self._device = torch.device(device)
        self._threshold = threshold
        self._model = load_model(checkpoint).to(self._device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]

    def probabilities(self, squares: Sequence[U8]) -> NDArray[np.float32]:
        """Predict prepared squares u8[S,S] to lung probabilities f32[B,S,S]."""
        images = torch.from_numpy(np.stack(squares)[:, None]).to(self._device).float().div_(255.0)
        with torch.inference_mode():
            logits = self._model(images.contiguous(memory_format=torch.channels_last))
        return torch.sigmoid(logits)[:, 0].float().cpu().numpy()

    def __call__(self, squares: Sequence[U8], geometries: Sequence[Geometry]) -> list[U8]:
        """Predict prepared squares u8[S,S] to masks u8[H,W] in {0,1}, each at its native size."""
        probabilities = self.probabilities(squares)
        pairs = zip(probabilities, geometries, strict=True)
        return [(restore(square, geometry) >= self._threshold).astype(np.uint8) for square, geometry in pairs]
