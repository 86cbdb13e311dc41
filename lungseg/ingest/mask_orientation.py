"""Detect masks that were mirrored, rotated or transposed relative to their image."""

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from lungseg.arrays import F32, U8, Bools
from lungseg.errors import ImageError
from lungseg.imaging.orientation import to_upright
from lungseg.imaging.thumbnails import percentile_ranks, thumbnail

# On Shenzhen and Montgomery at 256 px each mask as stored scores higher than in any other orientation, by 0.05 or more.
_MIN_GAIN = 0.1
_MIN_SCORE = 0.12
THUMBNAIL = 128
"""Pixels a side of the thumbnails that are compared."""
_MIN_DIFFERENCE = 0.02  # of the scores in two orientations, to prefer one
_CERTAIN = 0.4  # none of those 688 masks scores more than 0.30 in one of the seven other orientations
# How a mask may have been changed, and the change of the image that has the same effect.
_CHANGES: dict[str, Callable[[NDArray[Any]], NDArray[Any]]] = {
    "mirrored left-right": np.fliplr,
    "upside down": np.flipud,
    "rotated by 180 degrees": lambda field: np.rot90(field, 2),
    "rotated by 90 degrees to the left": np.rot90,
    "rotated by 90 degrees to the right": lambda field: np.rot90(field, 3),
    "transposed": np.transpose,
    "transposed and rotated by 180 degrees": lambda field: np.rot90(field.T, 2),
}


def refuse_wrong_orientation(lungs: U8, thumb: F32, visible: Bools, display_name: str) -> None:
    """Refuse a mask that fits its image far better in another orientation.

    lungs: u8[H,W] in {0,1}; thumb: f32[S,S], the thumbnail of the image; visible: bool[S,S], its pixels inside
    collimation and padding.

    Raises:
        ImageError: `mask_orientation`.

    """
    scores = _orientation_scores(lungs, thumb, visible)
    if len(scores) == 1:
        return
    as_stored = scores.pop("")
    change = max(scores, key=lambda name: scores[name])
    # A clearly negative score as stored means an image with dark bones, not a wrong orientation.
    if scores[change] - as_stored > _MIN_GAIN and scores[change] > max(_MIN_SCORE, -as_stored):
        raise ImageError(
            "mask_orientation",
            f"{display_name} is {change}: corrected it matches its image by {scores[change]:.2f}, as stored by "
            f"{as_stored:.2f}: save it in the orientation of its image",
        )


def is_drawn_on_stored(lungs: U8, thumb: F32, visible: Bools, orientation: int, display_name: str) -> bool:
    """Return whether a mask without an orientation tag fits the stored pixels of its image, not the upright picture.

    lungs: u8[H,W] in {0,1} as in its file; thumb, visible: of the upright image, as in `refuse_wrong_orientation`;
    orientation: of the image's stored pixels.

    Raises:
        ImageError: `mask_orientation`, if it fits both equally well.

    """
    as_upright, as_stored = (
        _orientation_scores(drawn, thumb, visible)[""] for drawn in (lungs, to_upright(lungs, orientation))
    )
    if abs(as_upright - as_stored) < _MIN_DIFFERENCE:
        raise ImageError(
            "mask_orientation",
            f"{display_name} has no orientation tag, but its image has: the mask fits the upright picture "
            f"({as_upright:.2f}) as well as the stored pixels ({as_stored:.2f}): save both without the tag",
        )
    return as_stored > as_upright


def _orientation_scores(lungs: U8, thumb: F32, visible: Bools) -> dict[str, float]:
    """Correlate lung with darkness along the mask's outline, as stored (named "") and for each change of orientation.

    Only a band of a few hundredths of the image on both sides of the outline counts, so that slow changes of brightness
    have no effect. Each score is Pearson's correlation, from -1 to 1. If the score as stored is high, it is the only
    one.
    """
    darkness = 1 - percentile_ranks(thumb)
    darkness[~visible] = 0  # black padding is no lung
    mask = np.asarray(thumbnail(lungs, len(thumb)), np.uint8)  # means of 0 and 1, rounded
    cross = np.ones((3, 3), np.uint8)
    band = cv2.dilate(mask, cross, iterations=2) > cv2.erode(mask, cross, iterations=2)
    if not band.any():
        return dict.fromkeys(("", *_CHANGES), 0.0)
    centred = mask[band] - mask[band].mean()
    as_stored = _correlations(darkness[band][None], centred)
    if as_stored[0] >= _CERTAIN:
        return {"": as_stored[0]}
    # The image is changed instead of the mask, so that the band is computed once.
    changed = np.stack([change(darkness)[band] for change in _CHANGES.values()])
    return {"": as_stored[0], **dict(zip(_CHANGES, _correlations(changed, centred), strict=True))}


def _correlations(rows: NDArray[np.float64], centred: NDArray[np.float64]) -> list[float]:
    """Correlate each row of f64[N,P] with f64[P] of mean 0; 0 if one of them is constant."""
    rows = rows - rows.mean(axis=1, keepdims=True)
    norms = np.sqrt(np.square(rows).sum(axis=1) * np.square(centred).sum())
    correlations: list[float] = np.divide(rows @ centred, norms, out=np.zeros(len(rows)), where=norms > 0).tolist()
    return correlations
