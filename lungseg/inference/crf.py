"""Dense conditional random field: pixels near each other, and of similar grey value, vote for the same label.

Mean-field inference of Kraehenbuehl and Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge
Potentials", NeurIPS 2011, for two labels. The sums over all pairs of pixels are blurred on a bilateral grid (Paris and
Durand, "A Fast Approximation of the Bilateral Filter using a Signal Processing Approach", ECCV 2006).
"""

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from lungseg.arrays import F32, U8

# Chosen on training images of Montgomery and Shenzhen (docs/results.md). Distances are shares of the longer side.
_DISTANCE, _GREY, _VOTE = 0.03, 0.1, 1.0  # standard deviations in distance and grey value (of 255), weight of the votes
_BORDER_DISTANCE, _BORDER_VOTE = 0.006, 1.0  # the same for votes that ignore grey values
_ITERATIONS = 5
_CELLS = 2.0  # of the grid in a standard deviation
_SMALLEST = 1e-4  # probability: the image can change any pixel

F64 = NDArray[np.float64]


def refine(probability: F32, image: U8, threshold: float) -> F32:
    """Refine lung probabilities f32[H,W] in [0,1] by the image u8[H,W]; a pixel is lung from `threshold` on."""
    grid = _Grid(image)
    shift = math.log(threshold / (1 - threshold))
    own = _logit(np.clip(probability.astype(np.float64), _SMALLEST, 1 - _SMALLEST)) - shift
    votes: F64 = np.zeros_like(own)
    for _ in range(_ITERATIONS):
        belief = _sigmoid(own + votes)
        votes = _VOTE * _as_votes(grid.mean_of_similar(belief)) + _BORDER_VOTE * _as_votes(_mean_of_near(belief))
    return _sigmoid(own + votes + shift).astype(np.float32)


class _Grid:
    """The pixels of an image in cells of rows, columns and grey values."""

    def __init__(self, image: U8) -> None:
        rows, columns = np.indices(image.shape)
        step = _DISTANCE * max(image.shape) / _CELLS
        places = [np.rint(values / size).astype(np.intp) for values, size in ((rows, step), (columns, step))]
        places.append(np.rint(image * (_CELLS / (_GREY * 255))).astype(np.intp))
        self._shape = tuple(int(place.max()) + 1 for place in places)
        self._cells = np.ravel_multi_index(tuple(places), self._shape)
        self._counts = self._blurred_sums(np.ones(image.shape))

    def mean_of_similar(self, values: F64) -> F64:
        """Return the mean over the image of f64[H,W], weighted by closeness in place and grey value."""
        mean: F64 = self._blurred_sums(values) / self._counts
        return mean

    def _blurred_sums(self, values: F64) -> F64:
        from scipy import ndimage  # slow import, not needed without this option

        sums = np.bincount(self._cells.ravel(), values.ravel(), int(np.prod(self._shape))).reshape(self._shape)
        blurred = ndimage.gaussian_filter(sums, _CELLS, mode="constant", truncate=3.0)
        each: F64 = blurred.ravel()[self._cells]
        return each


def _mean_of_near(values: F64) -> F64:
    deviation = _BORDER_DISTANCE * max(values.shape)
    mean: F64 = cv2.GaussianBlur(values, (0, 0), deviation, borderType=cv2.BORDER_REPLICATE)  # type: ignore[assignment]
    return mean


def _as_votes(mean: F64) -> F64:
    """Return votes from -1, all neighbours are background, to 1, all are lung."""
    return 2.0 * mean - 1.0


def _logit(probability: F64) -> F64:
    logit: F64 = np.log(probability) - np.log1p(-probability)
    return logit


def _sigmoid(logit: F64) -> F64:
    probability: F64 = 1.0 / (1.0 + np.exp(-logit))
    return probability
