"""Grey levels of any depth to 0..255, from what a picture shows inside its collimation."""

from collections.abc import Iterable

import cv2
import numpy as np
from numpy.typing import NDArray

from lungseg.arrays import Grey
from lungseg.errors import ImageError, InputError, SettingsError
from lungseg.imaging.collimation import content_box

_CLAHE_LIMIT, _CLAHE_TILES = 2.0, (8, 8)
_STRETCH = (1.0, 99.0)
_NYUL = (1.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 90.0, 99.0)
_STANDARD = (2.55, 252.45)  # 1 and 99 % of 0..255, so that the tails of a picture keep room at both ends
_GAP = 0.01  # levels; least distance of two landmarks, where a reference is saturated


def normalise(image: Grey, histogram: str, landmarks: tuple[float, ...] = ()) -> NDArray[np.uint8]:
    """Map grey values of any depth, u8 or u16[H,W], to 0..255 by the named histogram mode.

    Statistics are those of the content box. Pure black in it is padding too: it is left out, and it stays 0. Every mode
    but clahe is one table of levels that never falls. match brings the percentiles 1, 10, 20 ... 90, 99 to
    `landmarks`, linearly between them and on beyond them at the slope of the last two, cut at 0 and 255.

    Raises:
        SettingsError: match without its landmarks, or with such as do not rise.

    Source: match: Nyul, Udupa, Zhang, New variants of a method of MRI scale standardization, IEEE TMI 19(2), 2000.

    """
    if histogram == "match":
        _check_landmarks(landmarks)
    if histogram == "none" and image.dtype == np.uint8:
        return image  # type: ignore[return-value]
    box = content_box(image)
    if histogram in ("none", "clahe"):
        shallow = _to_8_bits(image, _bits(image[box]))
        return shallow if histogram == "none" else _equalize_tiles(shallow, image, box)
    cumulated = _cumulated(image[box])
    if cumulated[-1] == 0:
        return np.zeros(image.shape, np.uint8)
    if histogram == "match":
        levels = _matching(cumulated, landmarks)
    else:
        levels = _equalizing(cumulated) if histogram == "equalize" else _stretching(cumulated)
    levels[0] = 0
    # OpenCV before 5 has no table look-up for 16 bits.
    return cv2.LUT(image, levels) if image.dtype == np.uint8 else np.take(levels, image)  # type: ignore[return-value]


def compute_landmarks(images: Iterable[Grey]) -> tuple[float, ...]:
    """Learn the landmarks of match from reference pictures, u8 or u16[H,W] each: eleven rising levels in 0..255.

    One picture gives its own percentiles, at the levels of mode none: plain matching to it. Of several, each is
    stretched so that its 1st and 99th percentile meet those of the standard scale, then the mean is taken.

    Raises:
        InputError: there is no picture.
        ImageError: `flat_reference`, a picture is of one grey value between its 1st and 99th percentile.

    Source: Nyul and Udupa, On standardizing the MR image intensity scale, Magnetic Resonance in Medicine 42(6), 1999.

    """
    found = [_reference_levels(image, number) for number, image in enumerate(images, start=1)]
    if not found:
        raise InputError("--match-to holds no picture, expected one or more: name a picture or a folder of them")
    if len(found) > 1:
        found = [np.interp(levels, levels[[0, -1]], _STANDARD) for levels in found]
    mean: NDArray[np.float64] = np.mean(found, axis=0)
    # A saturated reference has equal percentiles, and a table cannot bring two greys to one landmark and back.
    gaps = _GAP * np.arange(len(_NYUL))
    rising = np.minimum(np.maximum.accumulate(mean - gaps) + gaps, 255.0 - gaps[::-1])
    return tuple(float(level) for level in rising)


def _cumulated(content: Grey) -> NDArray[np.int64]:
    """Count the pixels at or below each grey value, without pure black."""
    size = int(np.iinfo(content.dtype).max) + 1
    counts = cv2.calcHist([content], [0], None, [size], [0, size]).ravel().astype(np.int64)
    counts[0] = 0
    return np.cumsum(counts)


def _percentiles(cumulated: NDArray[np.int64], shares: tuple[float, ...]) -> NDArray[np.int64]:
    """Find the grey values at or below which these shares of the pixels lie, percent."""
    greys: NDArray[np.int64] = np.searchsorted(cumulated, cumulated[-1] * np.array(shares) / 100.0)
    return greys


def _equalizing(cumulated: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Levels that spread the grey values evenly. Source: Gonzalez and Woods, Digital Image Processing, 3.3.1."""
    first = cumulated[np.flatnonzero(cumulated)[0]]
    spread = max(int(cumulated[-1] - first), 1)
    return _rounded((cumulated - first) * (255.0 / spread))


def _stretching(cumulated: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Levels that map the 1st to the 99th percentile onto 0..255, linearly."""
    low, high = (int(grey) for grey in _percentiles(cumulated, _STRETCH))
    return _rounded((np.arange(cumulated.size) - low) * (255.0 / max(high - low, 1)))


def _matching(cumulated: NDArray[np.int64], landmarks: tuple[float, ...]) -> NDArray[np.uint8]:
    """Levels that bring Nyul's percentiles to the landmarks."""
    greys, which = np.unique(_percentiles(cumulated, _NYUL), return_inverse=True)
    # One grey may be several percentiles: it goes to the mean of their landmarks.
    targets = np.bincount(which, landmarks) / np.bincount(which)
    slopes = np.diff(targets) / np.diff(greys) if greys.size > 1 else np.zeros(1)
    reach = cumulated.size
    greys = np.concatenate([greys[:1] - reach, greys, greys[-1:] + reach])
    targets = np.concatenate([targets[:1] - slopes[0] * reach, targets, targets[-1:] + slopes[-1] * reach])
    return _rounded(np.interp(np.arange(cumulated.size), greys, targets))


def _rounded(levels: NDArray[np.floating]) -> NDArray[np.uint8]:
    rounded: NDArray[np.uint8] = np.rint(np.clip(levels, 0.0, 255.0)).astype(np.uint8)
    return rounded


def _check_landmarks(landmarks: tuple[float, ...]) -> None:
    if not landmarks:
        raise SettingsError(
            "histogram match has no landmarks to bring grey levels to: pass --match-to with a picture or a folder"
        )
    if len(landmarks) != len(_NYUL) or (np.diff(landmarks) <= 0).any():
        raise SettingsError(
            f"preprocess.landmarks {' '.join(f'{level:g}' for level in landmarks)}: expected {len(_NYUL)} levels, each "
            "higher than the one before: have them learnt by --match-to"
        )


def _reference_levels(image: Grey, number: int) -> NDArray[np.float64]:
    """Percentiles of a reference picture at the levels of mode none, not rounded."""
    content = image[content_box(image)]
    levels = _percentiles(_cumulated(content), _NYUL) / 2.0 ** (_bits(content) - 8)
    if levels[0] == levels[-1]:
        raise ImageError(
            "flat_reference",
            f"picture {number} of --match-to holds one grey value between its 1st and 99th percentile, "
            "expected an X-ray: take it out",
        )
    return levels


def _equalize_tiles(shallow: NDArray[np.uint8], image: Grey, box: tuple[slice, slice]) -> NDArray[np.uint8]:
    """Apply CLAHE inside the box; a border keeps its level, as its noise would be spread over all levels."""
    # At 8 bits: OpenCV's 16-bit CLAHE cuts its limit to whole counts of 65536 bins, and 12 bits come out dull.
    levels = shallow.copy()
    levels[box] = cv2.createCLAHE(_CLAHE_LIMIT, _CLAHE_TILES).apply(shallow[box])
    levels *= image > 0
    return levels


def _bits(content: Grey) -> int:
    """Count the bits that are really used: a 12-bit picture in 16-bit words would come out black otherwise."""
    return max(8, int(content.max()).bit_length())


def _to_8_bits(image: Grey, bits: int) -> NDArray[np.uint8]:
    """Keep the upper 8 of these bits; a border brighter than the content is cut at 255."""
    return cv2.convertScaleAbs(image >> (bits - 8))  # type: ignore[return-value]
