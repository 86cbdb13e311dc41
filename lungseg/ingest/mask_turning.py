"""Turn masks upright with their image, where one of them has an orientation tag."""

from collections.abc import Sequence

import numpy as np

from lungseg.arrays import U8, Grey
from lungseg.imaging.codecs import DecodedMask
from lungseg.imaging.orientation import UPRIGHT, other_shape, to_upright
from lungseg.imaging.thumbnails import find_visible_area, thumbnail
from lungseg.ingest.mask_orientation import THUMBNAIL, is_drawn_on_stored
from lungseg.ingest.reason_codes import Note


def turn_with_image(
    decoded: Sequence[DecodedMask], names: Sequence[str], image: Grey, orientation: int
) -> tuple[list[U8], tuple[Note, ...]]:
    """Return masks that fit the upright image, u8[h,w] in {0,1}, and the repairs.

    A mask with an orientation tag is upright already. One without a tag may be drawn on the upright picture, or on the
    stored pixels of an image that has a tag: its aspect ratio decides, or its fit to the image where both are possible.
    orientation: of the image's stored pixels.

    Raises:
        ImageError: `mask_orientation`, if the fit does not decide.

    """
    notes = [
        Note("mask_turned", f"{name} was made upright: its orientation tag is {mask.orientation}")
        for name, mask in zip(names, decoded, strict=True)
        if mask.orientation != UPRIGHT
    ]
    untagged = [number for number, mask in enumerate(decoded) if mask.orientation == UPRIGHT]
    masks = [mask.mask for mask in decoded]
    if orientation == UPRIGHT or not untagged:
        return masks, tuple(notes)
    if _are_drawn_on_stored([masks[number] for number in untagged], image, orientation, names[untagged[0]]):
        for number in untagged:
            masks[number] = to_upright(masks[number], orientation)
            message = f"{names[number]} was made upright like its image, whose stored pixels it is drawn on"
            notes.append(Note("mask_turned", message))
    return masks, tuple(notes)


def has_same_aspect(shape: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Return whether two shapes have the same aspect ratio, within rounding to whole pixels.

    Each side of a resized mask is off by up to half a pixel of its own.
    """
    return abs(shape[1] * other[0] - shape[0] * other[1]) <= 0.5 * (other[0] + other[1])


def _are_drawn_on_stored(masks: Sequence[U8], image: Grey, orientation: int, display_name: str) -> bool:
    fits_upright = all(has_same_aspect(mask.shape, image.shape) for mask in masks)
    fits_stored = all(has_same_aspect(mask.shape, other_shape(image.shape, orientation)) for mask in masks)
    if not (fits_upright and fits_stored):
        return fits_stored
    # All masks together decide: one lung alone says little about its orientation.
    drawn = np.maximum.reduce([np.asarray(thumbnail(mask, THUMBNAIL) >= 0.5, np.uint8) for mask in masks])
    thumb = thumbnail(image, THUMBNAIL)
    return is_drawn_on_stored(drawn, thumb, find_visible_area(thumb).visible, orientation, display_name)
