"""Draw the lungs of a prediction on its X-ray, with a caption, as a PNG file."""

import numpy as np

from lungseg import storage
from lungseg.arrays import U8, Row
from lungseg.imaging import codecs
from lungseg.imaging.caption import add_caption
from lungseg.imaging.lung_sides import split_sides
from lungseg.imaging.overlay import LEFT_LUNG, REFERENCE, RIGHT_LUNG, draw_outlines

_MIN_SIDE = 768  # px, longer side; smaller pictures are hard to judge


def encode_overlay(row: Row, image: U8, mask: U8, reference: U8 | None, max_side: int) -> bytes:
    """Encode an image u8[H,W] with the outlines of its masks u8[H,W] in {0,1} and a caption; all are upright."""
    overlay = caption_overlay(row, draw_overlay(image, mask, reference, max_side), reference is not None)
    return codecs.encode_image(np.ascontiguousarray(overlay[..., ::-1]))


def draw_overlay(image: U8, mask: U8, reference: U8 | None, max_side: int) -> U8:
    """Draw the outlines of the lungs, u8[H,W] in {0,1}, on an image u8[H,W]; return RGB u8[h,w,3].

    Large images are reduced to `max_side` px, small ones enlarged to 768 px. The patient's right lung is orange, the
    left lung green; the reference is blue, wider and below them.
    """
    right, left = split_sides(mask)
    outlines = [] if reference is None else [(reference, REFERENCE, 1)]
    outlines += [(right, RIGHT_LUNG, 0), (left, LEFT_LUNG, 0)]
    return draw_outlines(image, outlines, max_side, min(_MIN_SIDE, max_side))


def caption_overlay(row: Row, overlay: U8, has_reference: bool) -> U8:
    """Put the name of the image, its doubt and a legend above an overlay RGB u8[h,w,3]."""
    doubt = "" if row["doubt"] is None else f"doubt {row['doubt']:.3f}; {row['doubt_reason']}"
    dice = f"Dice {row['dice']:.3f}; " if has_reference and row["dice"] is not None else ""
    legend = [("right lung", RIGHT_LUNG), ("left lung", LEFT_LUNG)]
    legend += [("reference", REFERENCE)] if has_reference else []
    texts = [storage.name_of(row["source_uri"]), f"{dice}{doubt}"]
    return add_caption(overlay, list(filter(None, texts)), legend)
