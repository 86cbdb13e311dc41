"""What a checkpoint stores for each of its classes."""

import numpy as np

from lungseg.arrays import F32
from lungseg.model.checkpoint import Checkpoint, stored_result, stored_threshold


def stored_thresholds(checkpoint: Checkpoint) -> dict[str, float]:
    """Return the threshold of each class: the one chosen by the run, else that of its settings."""
    chosen = stored_result(checkpoint).get("thresholds") or checkpoint.config.get("thresholds", {})
    threshold = stored_threshold(checkpoint)
    return {name: float(chosen.get(name, threshold)) for name in checkpoint.preprocess.classes}


def threshold_column(checkpoint: Checkpoint) -> F32:
    """Return the thresholds as f32[K,1,1], to compare probabilities f32[B,K,H,W] with."""
    return np.array(list(stored_thresholds(checkpoint).values()), np.float32)[:, None, None]
