"""The one way from a picture of any size to a prepared square, and its inverse; prepare and infer share it."""

import cv2
import numpy as np
from numpy.typing import NDArray

from lungseg.config import PreprocessSettings
from lungseg.schema import Geometry

Grey = NDArray[np.uint8] | NDArray[np.uint16]

_CLAHE_LIMIT, _CLAHE_TILES = 2.0, (8, 8)
_PERCENTILES = (1.0, 99.0)


def plan(height: int, width: int, settings: PreprocessSettings) -> Geometry:
    """Say where a picture of height x width px comes to lie in the square; pure arithmetic."""
    side = max(height, width) if settings.geometry == "pad" else min(height, width)
    scale = settings.size / side
    resized_height, resized_width = (max(1, round(length * scale)) for length in (height, width))
    # Floor division also centres the overhang of a crop, where the difference is negative.
    top, left = (settings.size - resized_height) // 2, (settings.size - resized_width) // 2
    return Geometry(height, width, resized_height, resized_width, top, left, settings.size)


def prepare_image(image: Grey, settings: PreprocessSettings) -> tuple[NDArray[np.uint8], Geometry]:
    """Normalise the histogram at full depth, then resize and place: u8 or u16[H,W] -> u8[S,S], padding black."""
    geometry = plan(image.shape[0], image.shape[1], settings)
    return _place(_resize(normalise(image, settings.histogram), geometry), geometry), geometry


def prepare_mask(mask: NDArray[np.uint8], geometry: Geometry) -> NDArray[np.uint8]:
    """Bring a native mask, u8[H,W] in {0,1}, into the square: a pixel is lung where half of what it covers is."""
    return (_place(_resize(mask * np.uint8(255), geometry), geometry) > 127).astype(np.uint8)


def restore(square: NDArray[np.float32], geometry: Geometry) -> NDArray[np.float32]:
    """Bring probabilities f32[S,S] back to native size, f32[H,W]: the inverse of preparation.

    Probabilities, not masks, so that the native border is interpolated. What `crop` cut off comes back as 0.
    """
    rows, columns = geometry.content()
    resized = np.zeros((geometry.resized_height, geometry.resized_width), np.float32)
    top, left = rows.start - geometry.top, columns.start - geometry.left
    resized[top : top + rows.stop - rows.start, left : left + columns.stop - columns.start] = square[rows, columns]
    return cv2.resize(resized, (geometry.native_width, geometry.native_height), interpolation=cv2.INTER_LINEAR)  # type: ignore[return-value]


def normalise(image: Grey, histogram: str) -> NDArray[np.uint8]:
    """Map grey values of any depth to 0..255 by the named histogram mode.

    Pure black is collimation and padding, not tissue: equalize and percentile leave it out of their statistics.
    """
    if histogram == "clahe":
        # At 8 bits: OpenCV's 16-bit CLAHE cuts its limit to whole counts of 65536 bins, and 12 bits come out dull.
        return cv2.createCLAHE(_CLAHE_LIMIT, _CLAHE_TILES).apply(_to_8_bits(image))  # type: ignore[return-value]
    if histogram == "none":
        return _to_8_bits(image)
    counts = np.bincount(image.ravel(), minlength=int(np.iinfo(image.dtype).max) + 1)
    counts[0] = 0
    cumulated = np.cumsum(counts)
    if cumulated[-1] == 0:
        return np.zeros(image.shape, np.uint8)
    levels = _equalizing(cumulated) if histogram == "equalize" else _stretching(cumulated)
    levels[0] = 0
    normalised: NDArray[np.uint8] = np.take(levels, image)
    return normalised


def _equalizing(cumulated: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Levels that spread the grey values evenly. Source: Gonzalez and Woods, Digital Image Processing, 3.3.1."""
    first = cumulated[np.flatnonzero(cumulated)[0]]
    spread = max(int(cumulated[-1] - first), 1)
    levels: NDArray[np.float64] = np.clip(cumulated - first, 0, None) * (255.0 / spread)
    return np.rint(levels).astype(np.uint8)


def _stretching(cumulated: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Levels that map the 1st to the 99th percentile onto 0..255, linearly."""
    low, high = (int(np.searchsorted(cumulated, cumulated[-1] * share / 100.0)) for share in _PERCENTILES)
    grey = np.arange(cumulated.size, dtype=np.float64)
    return np.rint(np.clip((grey - low) * (255.0 / max(high - low, 1)), 0, 255)).astype(np.uint8)


def _to_8_bits(image: Grey) -> NDArray[np.uint8]:
    """Scale by the depth that is really used: a 12-bit picture in 16-bit words would come out black otherwise."""
    bits = max(8, int(image.max()).bit_length())
    return image.astype(np.uint8) if bits == 8 else (image >> (bits - 8)).astype(np.uint8)


def _resize(image: NDArray[np.uint8], geometry: Geometry) -> NDArray[np.uint8]:
    shrinking = geometry.resized_height < geometry.native_height
    interpolation = cv2.INTER_AREA if shrinking else cv2.INTER_LINEAR
    return cv2.resize(image, (geometry.resized_width, geometry.resized_height), interpolation=interpolation)  # type: ignore[return-value]


def _place(resized: NDArray[np.uint8], geometry: Geometry) -> NDArray[np.uint8]:
    square = np.zeros((geometry.size, geometry.size), np.uint8)
    rows, columns = geometry.content()
    top, left = rows.start - geometry.top, columns.start - geometry.left
    square[rows, columns] = resized[top : top + rows.stop - rows.start, left : left + columns.stop - columns.start]
    return square
