"""Classify what a picture shows: an upright frontal chest, one that is turned, or something else.

A small convolutional network over a thumbnail, in NumPy. `python -m tests.train_view_classifier` makes its weights
from the Montgomery and Shenzhen X-rays, phantoms and drawn pictures; docs/flags.md has the measured error rates.
"""

from functools import cache
from importlib import resources
from typing import NamedTuple

import numpy as np

from lungseg.arrays import F32

SIDE = 32
"""Side of the network's input, px."""
WEIGHTS = "view_classifier.npz"


class Views(NamedTuple):
    """Probability of each view, 0 to 1, with sum 1. Light bones, except for `negative`; upside_down may be mirrored."""

    upright: float
    negative: float
    on_side: float
    upside_down: float
    other: float


def classify(ranks: F32) -> Views:
    """Compute the probability of each view from the ranks f32[SIDE,SIDE] of `thumbnails.rank_content`."""
    weights = _weights()
    features = ranks[None]
    for number in (1, 2, 3):
        features = _convolve(features, weights[f"kernel{number}"], weights[f"bias{number}"])
    logits = weights["kernel4"] @ features.ravel() + weights["bias4"]
    shares = np.exp(logits - logits.max())
    return Views(*(float(share) for share in shares / shares.sum()))


def _convolve(features: F32, kernel: F32, bias: F32) -> F32:
    """Convolve f32[C,S,S] by f32[D,C,3,3] with stride 2 and zero padding, and cut off below zero: f32[D,S/2,S/2]."""
    side = features.shape[1] // 2
    padded = np.pad(features, ((0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))[:, ::2, ::2]
    columns = windows.transpose(0, 3, 4, 1, 2).reshape(-1, side * side)
    values = kernel.reshape(len(kernel), -1) @ columns + bias[:, None]
    return np.asarray(np.maximum(values, 0).reshape(-1, side, side), np.float32)


@cache
def _weights() -> dict[str, F32]:
    """Load the weights; they hold arrays only, no pickled object."""
    with (resources.files(__package__) / WEIGHTS).open("rb") as file, np.load(file, allow_pickle=False) as stored:
        return {name: np.asarray(stored[name], np.float32) for name in stored.files}
