"""Draw the outlines of masks on an X-ray."""

import itertools
from collections.abc import Iterable, Sequence

import cv2
import numpy as np

from lungseg.arrays import U8
from lungseg.config import class_names

Colour = tuple[int, int, int]

# RGB of the palette of Okabe and Ito, Color Universal Design, 2008, two of them lighter.
RIGHT_LUNG: Colour = (255, 176, 0)
LEFT_LUNG: Colour = (0, 204, 150)
REFERENCE: Colour = (86, 180, 233)
_HEART: Colour = (240, 228, 66)
_OPACITY: Colour = (255, 120, 170)
_BY_CLASS = {
    class_names.RIGHT_LUNG: RIGHT_LUNG,
    class_names.LEFT_LUNG: LEFT_LUNG,
    class_names.LUNG: RIGHT_LUNG,
    class_names.HEART: _HEART,
    class_names.OPACITY: _OPACITY,
}
_OTHERS: tuple[Colour, ...] = ((190, 160, 255), (255, 255, 255), (200, 120, 60), (150, 220, 60))

_DASH = 5  # length of a dash and of a gap, in widths of the line


def colours_of(names: Iterable[str]) -> dict[str, Colour]:
    """Return a colour for each class; those of classes without one of their own repeat after four."""
    others = itertools.cycle(_OTHERS)
    return {name: _BY_CLASS.get(name) or next(others) for name in names}


def to_hex(colour: Colour) -> str:
    """Return a colour as #rrggbb."""
    return "#{:02x}{:02x}{:02x}".format(*colour)


def draw_outlines(image: U8, outlines: Sequence[tuple[U8, Colour, int | None]], max_side: int, min_side: int = 1) -> U8:
    """Draw the outlines of masks on an image u8[H,W]; return RGB u8[h,w,3] of at most `max_side` px.

    outlines: mask u8[H,W] in {0,1}, colour, and px that its line is wider than usual, None: dashed; the later ones are
    on top.
    min_side: longer side to which a smaller image is enlarged, px.
    """
    height, width = image.shape
    scale = min(max_side / max(height, width), max(1.0, min_side / max(height, width)))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    resized = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale <= 1 else cv2.INTER_CUBIC)
    overlay = cv2.cvtColor(resized, cv2.COLOR_GRAY2RGB)
    thickness = max(1, round(max(size) / 500))
    for mask, colour, extra in outlines:
        contours, _ = cv2.findContours(_resize_mask(mask, size, scale), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        if extra is None:
            length = _DASH * thickness
            dashes = [line[start : start + length] for line in contours for start in range(0, len(line), 2 * length)]
            cv2.polylines(overlay, dashes, False, colour, thickness, cv2.LINE_AA)
        else:
            cv2.drawContours(overlay, contours, -1, colour, thickness + extra, cv2.LINE_AA)
    return np.asarray(overlay, np.uint8)


def _resize_mask(mask: U8, size: tuple[int, int], scale: float) -> U8:
    """Resize a mask u8[H,W] in {0,1}; enlarged masks get a smooth border instead of steps."""
    if scale <= 1:
        return np.asarray(cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST), np.uint8)
    levels = cv2.resize(mask * np.uint8(255), size, interpolation=cv2.INTER_LINEAR)
    return np.asarray(levels > 127, np.uint8)
