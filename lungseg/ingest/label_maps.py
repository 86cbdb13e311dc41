"""Distinguish masks and label maps from X-rays by their grey values."""

import numpy as np
from numpy.typing import NDArray

from lungseg.arrays import Grey

_SAMPLES = 128  # a side; enough to measure areas as large as a lung
_PEAKS, _TOLERANCE = 4, 0.02  # grey levels of a noisy map, and half the width of each as a share of the contrast
# Share of the pixels at these levels, and of those beside the most frequent level. In Shenzhen and Montgomery X-rays
# have 0.76 and 0.44 at most; their masks as JPEG of quality 20 at 64 px have 0.9 and 0.69 or more.
_MIN_SHARE, _MIN_REST = 0.88, 0.65
_FEW_LEVELS = 6  # of a map without noise; X-rays of 256 px have 200 or more
_MANY_LEVELS = 64  # of a map with many labels
_MIN_FLAT = 0.9  # share of neighbours with equal grey values; noise of a few levels has less
# Share of the other neighbours that are more than one level apart. A label borders on any other; the grey values of an
# X-ray of few levels change step by step: 0.36 at most in Shenzhen and Montgomery at 8 to 32 levels.
_MIN_JUMPS = 0.5


def is_label_map(image: Grey) -> bool:
    """Return whether a picture, u8 or u16[H,W], has the grey levels of labels.

    It has two to six levels, more without steps between them, or up to four with the noise of JPEG.
    """
    step = max(1, min(image.shape) // _SAMPLES)
    samples = image[::step, ::step]
    counts = np.bincount(samples.ravel())  # a third of the time of np.unique
    levels = np.flatnonzero(counts)
    counts = counts[levels]
    low, high = np.percentile(samples, (1, 99))
    if low == high:  # blank
        return False
    if levels.size <= _MANY_LEVELS:
        flat, jumps = _neighbours(image[::step])
        if levels.size <= _FEW_LEVELS:
            return flat >= _MIN_FLAT
        if flat >= _MIN_FLAT and jumps >= _MIN_JUMPS:
            return True
    shares = _peaks(levels.astype(np.float64), counts / samples.size, _TOLERANCE * float(high - low))
    total, rest = sum(shares), sum(shares[1:])
    return shares[0] < 1 and total >= _MIN_SHARE and rest >= _MIN_REST * (1 - shares[0])


def _neighbours(image: Grey) -> tuple[float, float]:
    """Return the share of neighbours in a row with equal grey values, and of the others more than one level apart."""
    _, ranks = np.unique(image, return_inverse=True)
    steps = np.abs(np.diff(ranks.reshape(image.shape), axis=1))
    changed = int(np.count_nonzero(steps))
    return 1 - changed / steps.size, int(np.count_nonzero(steps > 1)) / max(1, changed)


def _peaks(levels: NDArray[np.float64], shares: NDArray[np.float64], tolerance: float) -> list[float]:
    """Return the shares of pixels within a tolerance of the most frequent levels, the largest share first."""
    first = np.searchsorted(levels, levels - tolerance, "left")
    last = np.searchsorted(levels, levels + tolerance, "right")
    remaining = shares.copy()
    peaks = []
    for _ in range(_PEAKS):
        sums = np.concatenate([[0.0], np.cumsum(remaining)])
        around = sums[last] - sums[first]
        peak = int(around.argmax())
        peaks.append(float(around[peak]))
        remaining[first[peak] : last[peak]] = 0
    return peaks
