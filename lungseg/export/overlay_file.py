"""Draw the masks of a prediction on its X-ray, with a caption, as a PNG file."""

from collections.abc import Mapping

import numpy as np

from lungseg import storage
from lungseg.arrays import U8, Row
from lungseg.imaging import codecs
from lungseg.imaging.caption import TEXT, add_caption
from lungseg.imaging.orientation import to_upright
from lungseg.imaging.overlay import REFERENCE, Colour, colours_of, draw_outlines
from lungseg.predictions.class_masks import read_shown_masks
from lungseg.predictions.image_files import orientation_of
from lungseg.predictions.overlays import describe_measures

_MIN_SIDE = 768  # px, longer side; smaller pictures are hard to judge


def encode_overlay(row: Row, image: U8, lungs: U8 | None, references: Mapping[str, U8], max_side: int) -> bytes:
    """Encode an upright image u8[H,W] with the outlines of the masks of its row, of its references, and a caption.

    lungs: the mask of both lungs, u8[H,W] in {0,1} as stored, if it is decoded. references: upright, by class.

    Raises:
        ImageError: a mask of the row cannot be decoded.

    """
    orientation = orientation_of(row)
    masks = read_shown_masks(row, orientation, lungs)
    upright = {name: to_upright(mask, orientation) for name, mask in masks.items()}
    overlay = caption_overlay(row, draw_overlay(image, upright, references, max_side), list(masks), bool(references))
    return codecs.encode_image(np.ascontiguousarray(overlay[..., ::-1]))


def draw_overlay(image: U8, masks: Mapping[str, U8], references: Mapping[str, U8], max_side: int) -> U8:
    """Draw the outlines of masks, u8[H,W] in {0,1} by class, on an image u8[H,W]; return RGB u8[h,w,3].

    Large images are reduced to `max_side` px, small ones enlarged to 768 px. Each class has its colour: the patient's
    right lung is orange, the left lung green. The reference of a class that has a mask is dashed in its colour, on top.
    Others are blue, wider and below.
    """
    colours = colours_of(masks)
    outlines: list[tuple[U8, Colour, int | None]] = [
        (reference, REFERENCE, 1) for name, reference in references.items() if name not in masks
    ]
    outlines += [(mask, colours[name], 0) for name, mask in masks.items()]
    outlines += [(references[name], colours[name], None) for name in masks if name in references]
    return draw_outlines(image, outlines, max_side, min(_MIN_SIDE, max_side))


def caption_overlay(row: Row, overlay: U8, names: list[str], has_reference: bool) -> U8:
    """Put the name of the image, its doubt, its measures and a legend of the classes above an overlay RGB u8[h,w,3]."""
    doubt = "" if row["doubt"] is None else f"doubt {row['doubt']:.3f}; {row['doubt_reason']}"
    of_lungs = "lungs: " if row.get("classes") else ""
    dice = f"{of_lungs}Dice {row['dice']:.3f}; " if has_reference and row["dice"] is not None else ""
    legend = [(name.replace("_", " "), colour) for name, colour in colours_of(names).items()]
    if has_reference:
        legend.append(("dashed: reference", TEXT) if row.get("classes") else ("reference", REFERENCE))
    texts = [storage.name_of(row["source_uri"]), f"{dice}{doubt}", ", ".join(describe_measures(row))]
    return add_caption(overlay, list(filter(None, texts)), legend)
