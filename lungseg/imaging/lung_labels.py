"""Find the grey level of a mask file that means lung, where each lung may have its own level."""

import cv2
import numpy as np

from lungseg.arrays import Pixels
from lungseg.errors import ImageError

# Shares of a mask's non-black pixels: the least of one label, of all labels together, of a lung on its own side.
_LABEL, _LABELS, _ONE_SIDE = 0.01, 0.9, 0.9
_LEVELS_APART = 32  # levels that differ by less than the brightest / 32 are one, with the noise of JPEG
_FEW_LEVELS = 8  # fewer are labels without noise
_INNER = 0.2  # share of a label's pixels that only have neighbours of the same label; a soft edge has none
_RIM = 4  # width of a soft edge, samples
_BLACK = 0.25  # least share of background in a mask
_SAMPLES = 128  # a side; enough to find areas as large as a lung


def darkest_lung_level(array: Pixels, display_name: str) -> int:
    """Find the darkest grey level that means lung: the brightest level, unless each lung has its own.

    array: u8 or u16[H,W], of which a sample is used.

    Raises:
        ImageError: `mask_levels`, if large labels overlap both sides.

    """
    brightest = int(array.max())
    step = max(1, min(array.shape) // _SAMPLES)
    samples = array[::step, ::step].copy()
    marked = int(np.count_nonzero(samples))
    is_plain = np.count_nonzero(samples == brightest) > (1 - _LABEL) * marked
    if is_plain or marked > (1 - _BLACK) * samples.size or marked == 0:
        return brightest
    labels = _find_labels(samples, marked, brightest // _LEVELS_APART)
    if len(labels) < 2:
        return brightest
    columns = [np.nonzero(samples == label)[1] for label in labels]
    means = [float(places.mean()) for places in columns]
    middle = (min(means) + max(means)) / 2
    left = [float((places < middle).mean()) for places in columns]
    if all(max(share, 1 - share) >= _ONE_SIDE for share in left):
        return min(labels)
    if sum(places.size for places in columns) < _LABELS * marked:  # many grey levels: soft edges or JPEG noise
        return brightest
    raise ImageError(
        "mask_levels",
        f"{display_name} marks whole areas by the grey values {', '.join(map(str, labels))}, expected one for lung, or "
        "one for each lung: save a mask of the lungs alone",
    )


def _find_labels(samples: Pixels, marked: int, noise: int) -> list[int]:
    """List the non-black grey levels that fill areas of a mask and differ by more than noise."""
    levels, counts = np.unique(samples[samples > 0], return_counts=True)
    large = zip(levels[counts >= _LABEL * marked].tolist(), counts[counts >= _LABEL * marked].tolist(), strict=True)
    apart = noise if levels.size > _FEW_LEVELS else 0
    labels: list[int] = []
    for level in sorted(pair[0] for pair in large if _fills_an_area(samples, *pair)):
        if not labels or level > labels[-1] + apart:
            labels.append(level)
    return labels


def _fills_an_area(samples: Pixels, level: int, count: int) -> bool:
    """Return whether a grey level fills an area, rather than the soft edge of a brighter one."""
    is_level = (samples == level).view(np.uint8)
    if cv2.countNonZero(cv2.erode(is_level, np.ones((3, 3), np.uint8))) < _INNER * count:
        return False
    near = cv2.dilate((samples > level).view(np.uint8), np.ones((2 * _RIM + 1, 2 * _RIM + 1), np.uint8))
    return int(np.count_nonzero((is_level == 1) & (near == 0))) >= _INNER * count
