"""Tell masks and label maps from X-rays by their grey values."""

import numpy as np
from numpy.typing import NDArray

from lungseg.arrays import Grey

_SAMPLES = 128  # a side; enough to measure areas as large as a lung
_PEAKS, _TOLERANCE = 4, 0.02  # grey levels of a noisy map, and half the width of each as a share of the contrast
# Share of the pixels at these levels, and of those beside the most frequent level. In Shenzhen and Montgomery X-rays
# have 0.76 and 0.44 at most; their masks as JPEG of quality 20 at 64 px have 0.9 and 0.69 or more.
_MIN_SHARE, _MIN_REST = 0.88, 0.65
_FEW_LEVELS = 6  # of a map without noise; X-rays of 256 px have 200 or more
_MIN_FLAT = 0.9  # share of neighbours with equal grey values; noise of a few levels has less


def is_label_map(image: Grey) -> bool:
    """Return whether a picture, u8 or u16[H,W], has two to six grey levels, or up to four with noise as of JPEG."""
    step = max(1, min(image.shape) // _SAMPLES)
    samples = image[::step, ::step]
    levels, counts = np.unique(samples, return_counts=True)
    low, high = np.percentile(samples, (1, 99))
    if low == high:  # blank
        return False
    if levels.size <= _FEW_LEVELS:
        return bool((image[:, 1:] == image[:, :-1]).mean() >= _MIN_FLAT)
    shares = _peaks(levels.astype(np.float64), counts / samples.size, _TOLERANCE * float(high - low))
    total, rest = sum(shares), sum(shares[1:])
    return shares[0] < 1 and total >= _MIN_SHARE and rest >= _MIN_REST * (1 - shares[0])


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
