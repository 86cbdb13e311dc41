"""Prepare an image of any size as a square, and restore predictions to native size; used by prepare and infer."""

from dataclasses import fields, replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from lungseg import MAX_IMAGE_PIXELS
from lungseg.arrays import Grey
from lungseg.config import PreprocessSettings
from lungseg.errors import InputError
from lungseg.imaging.intensity import normalise
from lungseg.imaging.orientation import UPRIGHT
from lungseg.schema import NOT_ANNOTATED, Geometry, is_annotated

_SMOOTHED_FROM = 1.1  # enlargement
_SMOOTHING_PX = (
    0.7  # standard deviation; lungs of 15 % of the image are restored with Dice 0.9953, without smoothing 0.9946
)


def read_geometry(values: Any) -> Geometry:
    """Return the geometry that a file contains as a JSON object.

    Raises:
        InputError: a field is missing or unknown, or a value cannot be right.

    """
    names = {field.name for field in fields(Geometry)}
    is_known = isinstance(values, dict) and names - {"orientation"} <= {*values} <= names
    if not is_known or any(type(value) is not int for value in values.values()):
        raise InputError("the geometry is not valid: expected whole numbers in its fields")
    geometry = Geometry(**values)
    sides = ((geometry.native_height, geometry.native_width), (geometry.resized_height, geometry.resized_width))
    squares = (*sides, (geometry.size, geometry.size))
    has_sizes = all(min(shape) > 0 and shape[0] * shape[1] <= MAX_IMAGE_PIXELS for shape in squares)
    rows, columns = geometry.content()
    is_inside = 0 <= rows.start < rows.stop and 0 <= columns.start < columns.stop
    if not has_sizes or not is_inside or not 1 <= geometry.orientation <= 8:
        raise InputError("the geometry is not valid: it has an impossible size or position")
    return geometry


def plan_geometry(height: int, width: int, settings: PreprocessSettings) -> Geometry:
    """Compute where an image of height x width px is placed in the square."""
    side = max(height, width) if settings.geometry == "pad" else min(height, width)
    scale = settings.size / side
    resized_height, resized_width = (max(1, round(length * scale)) for length in (height, width))
    # Floor division also centres the overhang of a crop, where the difference is negative.
    top, left = (settings.size - resized_height) // 2, (settings.size - resized_width) // 2
    return Geometry(height, width, resized_height, resized_width, top, left, settings.size)


def prepare_image(
    image: Grey, settings: PreprocessSettings, orientation: int = UPRIGHT
) -> tuple[NDArray[np.uint8], Geometry]:
    """Normalise the histogram at full depth, then resize and place: u8 or u16[H,W] -> u8[S,S], padding black.

    The image is upright; orientation is that of the stored pixels and is only recorded.

    Raises:
        SettingsError: histogram match without landmarks.

    """
    geometry = replace(plan_geometry(image.shape[0], image.shape[1], settings), orientation=orientation)
    levels = normalise(image, settings.histogram, settings.landmarks)
    return _place(_resize(levels, geometry), geometry), geometry


def prepare_masks(masks: NDArray[np.uint8], geometry: Geometry) -> NDArray[np.uint8]:
    """Resize native masks, u8[K,H,W], to the square, u8[K,S,S]; masks that are not annotated stay so.

    A pixel belongs to a class if at least half of it is covered, for each class on its own. Padding is background.
    """
    return np.stack([prepare_mask(mask, geometry) for mask in masks])


def prepare_mask(mask: NDArray[np.uint8], geometry: Geometry) -> NDArray[np.uint8]:
    """Resize one native mask, u8[H,W], to the square, u8[S,S]; see `prepare_masks`."""
    if not is_annotated(mask):
        return np.full((geometry.size, geometry.size), NOT_ANNOTATED, np.uint8)
    return (_place(_resize(mask * np.uint8(255), geometry), geometry) > 127).astype(np.uint8)


def restore(square: NDArray[np.float32], geometry: Geometry) -> NDArray[np.float32]:
    """Resize probabilities f32[S,S] to native size, f32[H,W], upright: the inverse of preparation.

    Probabilities rather than masks, so that the native contour is interpolated. Pixels outside a crop become 0.
    """
    size = geometry.native_width, geometry.native_height
    return cv2.resize(smoothed_content(square, geometry), size, interpolation=cv2.INTER_LINEAR)  # type: ignore[return-value]


def smoothed_content(square: NDArray[np.float32], geometry: Geometry) -> NDArray[np.float32]:
    """Cut the image out of probabilities f32[S,S], as `restore` enlarges it: f32[resized_height,resized_width].

    Pixels outside a crop become 0.
    """
    rows, columns = geometry.content()
    inside = square[rows, columns]
    if geometry.native_height > _SMOOTHED_FROM * geometry.resized_height:
        # Enlarging a 0/1 contour enlarges its steps; below this scale smoothing loses more than it gains.
        inside = cv2.GaussianBlur(inside, (3, 3), _SMOOTHING_PX, borderType=cv2.BORDER_REPLICATE)  # type: ignore[assignment]
    if inside.shape == (geometry.resized_height, geometry.resized_width):
        return inside
    content = np.zeros((geometry.resized_height, geometry.resized_width), np.float32)
    top, left = rows.start - geometry.top, columns.start - geometry.left
    content[top : top + inside.shape[0], left : left + inside.shape[1]] = inside
    return content


def _resize(image: NDArray[np.uint8], geometry: Geometry) -> NDArray[np.uint8]:
    # Both sides share one scale, but rounding may leave the shorter side unchanged.
    shrinking = geometry.resized_height < geometry.native_height or geometry.resized_width < geometry.native_width
    interpolation = cv2.INTER_AREA if shrinking else cv2.INTER_LINEAR
    return cv2.resize(image, (geometry.resized_width, geometry.resized_height), interpolation=interpolation)  # type: ignore[return-value]


def _place(resized: NDArray[np.uint8], geometry: Geometry) -> NDArray[np.uint8]:
    square = np.zeros((geometry.size, geometry.size), np.uint8)
    rows, columns = geometry.content()
    top, left = rows.start - geometry.top, columns.start - geometry.left
    square[rows, columns] = resized[top : top + rows.stop - rows.start, left : left + columns.stop - columns.start]
    return square
