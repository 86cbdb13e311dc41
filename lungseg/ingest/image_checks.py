"""Check images before use: reject what is not a radiograph, repair what is safe to repair, and flag what is unusual."""

from dataclasses import dataclass
from functools import cache
from itertools import starmap

import numpy as np
from numpy.typing import NDArray

from lungseg.arrays import Grey, Pixels
from lungseg.errors import ImageError
from lungseg.imaging import codecs
from lungseg.imaging.dicom.reader import Tags, is_dicom
from lungseg.imaging.intensity import stretch_narrow, without_extremes
from lungseg.imaging.orientation import UPRIGHT, describe_orientation
from lungseg.imaging.thumbnails import RankedContent, border_pixels, correlation, rank_content, thumbnail
from lungseg.ingest import view_classifier
from lungseg.ingest.label_maps import is_label_map
from lungseg.ingest.reason_codes import Note

_MIN_SIDE = 32  # px; a smaller image is a thumbnail or an icon
_MIN_TRUSTED_SIDE = 64  # px; docs/flags.md has the Dice by size
_MAX_ASPECT = 2.5  # long side to short side; frontal chest X-rays are within 1.7
_MIN_CONTRAST = 1 / 80  # of the depth in use, 12 bits at most: three grey levels of 8 bits, 51 of 12 or 16 bits
# Correlation of colour channels. Tinted and JPEG-coded films are above 0.99, photographs and overlays below.
_MIN_GREY_CORRELATION = 0.98
_DEEPEST = 4095
_THUMBNAIL = 64  # px a side, for colour
_TEMPLATE = view_classifier.SIDE
# Shenzhen and Montgomery at 256 px, with and without padding, correlate by 0.25 or more; their negatives by -0.06 or
# less.
_INVERTED = -0.2
# For a chest rotated by 90 degrees, -upright is at most 0.71 of sideways; for a negative it is 1 or more.
_OVER_SIDEWAYS = 0.85
MIN_UPRIGHT = 0.3
"""Smallest probability of an upright chest without a flag; 4 of 688 X-rays of an unseen hospital are below it."""
_TAG_FLAGS = (Note("body_part_unknown"), Note("body_part_several"), Note("view_unknown"), Note("spacing_unusable"))


@dataclass(frozen=True)
class CheckedImage:
    """An image that passed the checks: u8 or u16[H,W], upright, with light bones; its file's tags; repairs; flags."""

    image: Grey
    tags: Tags
    repairs: tuple[Note, ...]
    flags: tuple[Note, ...]


def read_image(content: bytes, display_name: str, key: bytes | None = None) -> CheckedImage:
    """Decode a file and check it; return one grey image with light bones.

    Raises:
        ImageError: the codes of `codecs.read_image` and of `check_pixels`.

    """
    pixels, tags = codecs.read_image(content, display_name, key)
    image, repairs, flags = check_pixels(pixels, display_name)
    if tags.orientation != UPRIGHT:
        element = "PatientOrientation (0020,0020)" if is_dicom(content) else "orientation tag"
        repairs = (orientation_note(f"the {element} of {display_name}", tags.orientation), *repairs)
    repairs = (*starmap(Note, tags.repairs), *repairs)
    return CheckedImage(image, tags, repairs, (*(flag for flag in _TAG_FLAGS if flag.code in tags.flags), *flags))


def orientation_note(subject: str, orientation: int) -> Note:
    """Note that a picture was made upright. subject: the tag and its file; orientation: 2 to 8."""
    return Note(
        "orientation_tag",
        f"{subject} states that the stored picture is {describe_orientation(orientation)}: it was made upright for the "
        "model; height, width, mask, bbox and centroid of a prediction are those of the stored pixels",
    )


def check_pixels(pixels: Pixels, display_name: str) -> tuple[Grey, tuple[Note, ...], tuple[Note, ...]]:
    """Check decoded pixels, u8 or u16[H,W] or [H,W,3]; return the grey image, its repairs and its flags.

    Raises:
        ImageError: `too_small`, `extreme_aspect`, `colour`, `two_valued` or `blank`.

    """
    _refuse_shape(pixels.shape[0], pixels.shape[1], display_name)
    small = (Note("small_picture"),) if min(pixels.shape[:2]) < _MIN_TRUSTED_SIDE else ()
    repairs: tuple[Note, ...] = ()
    if pixels.ndim == 3:
        _refuse_colour(pixels, display_name)
        repairs += (Note("grey_as_colour", f"{display_name} stores a grey image as colour: its luma is used"),)
        pixels = codecs.to_grey(pixels)
    stretched = stretch_narrow(pixels)
    _refuse_label_map(stretched, display_name)  # a marker at full scale would make the picture look like one grey value
    _refuse_blank(pixels, display_name)
    if stretched is not pixels:
        message = (
            f"the picture fills less than a quarter of the grey range of {display_name}: it was stretched, or the "
            "border beyond it was clipped"
        )
        repairs += (Note("narrow_range", message),)
        pixels = stretched
    content = rank_content(pixels, view_classifier.SIDE)
    upright, sideways = chest_likeness(content)
    if upright <= _INVERTED and -upright >= _OVER_SIDEWAYS * sideways:
        repairs += (Note("inverted", f"{display_name} shows dark bones: its grey values were inverted"),)
        return _invert(pixels), repairs, (*small, *_content_flags(view_classifier.classify(-content.ranks)))
    return pixels, repairs, (*small, *_content_flags(view_classifier.classify(content.ranks)))


def _content_flags(views: view_classifier.Views) -> tuple[Note, ...]:
    """Flag what an image shows instead of an upright frontal chest with light bones."""
    if views.upright >= MIN_UPRIGHT:
        return ()
    likely = {
        Note("polarity_unsure"): views.negative,
        Note("rotated"): views.on_side + views.upside_down,
        Note("not_chest_like"): views.other,
    }
    return (max(likely, key=lambda note: likely[note]),)


def chest_likeness(content: RankedContent) -> tuple[float, float]:
    """Correlate ranked content with a template of a frontal chest, upright and rotated by 90 degrees to either side.

    Returns the upright correlation and the larger one of both rotations. Each is from -1 to 1: above 0 bones are light,
    below 0 dark.
    """
    ranks, inside = content.ranks[content.inside], content.inside
    upright, *sideways = (correlation(ranks, np.rot90(_chest_template(), turns)[inside]) for turns in (0, 1, 3))
    return upright, max(sideways)


@cache
def _chest_template() -> NDArray[np.float64]:
    """Compute a frontal chest: light spine and abdomen, dark lungs and dark air above the shoulders.

    x and y are from -1 to 1 over the image. The shapes follow anatomy; they are not fitted to images.
    """
    y, x = np.meshgrid(*[(np.arange(_TEMPLATE) + 0.5) * (2 / _TEMPLATE) - 1] * 2, indexing="ij")
    spine = np.exp(-np.square(x / 0.2))
    abdomen = 1 / (1 + np.exp((0.62 - y) / 0.08))
    # The fourth power gives flat ellipses with a soft border.
    lungs = np.exp(-np.square(np.square((np.abs(x) - 0.45) / 0.25) + np.square((y + 0.15) / 0.62)))
    air = 8 * np.clip(np.abs(x) - 0.35, 0, None) * np.clip(-y - 0.6, 0, None)
    return np.asarray(2 * spine + 0.7 * abdomen * (1 - spine) - lungs - air)


def _refuse_shape(height: int, width: int, display_name: str) -> None:
    if min(height, width) < _MIN_SIDE:
        raise ImageError(
            "too_small",
            f"{display_name} is {height}x{width} px, expected {_MIN_SIDE} or more a side: use the original image",
        )
    if max(height, width) > _MAX_ASPECT * min(height, width):
        raise ImageError(
            "extreme_aspect",
            f"{display_name} is {height}x{width} px, expected one side at most {_MAX_ASPECT} times the other: "
            "crop it to the chest, or remove it",
        )


def _refuse_colour(pixels: Pixels, display_name: str) -> None:
    """Refuse an image whose channels differ by more than a tint; a channel of one value is allowed."""
    channels = [thumbnail(pixels[..., channel], _THUMBNAIL) for channel in range(3)]
    varying = [channel for channel in channels if np.ptp(channel) > 0]
    lowest = min((correlation(varying[0], other) for other in varying[1:]), default=1.0)
    if lowest < _MIN_GREY_CORRELATION:
        raise ImageError(
            "colour",
            f"{display_name} is truly coloured (its channels correlate by {lowest:.2f}, those of a grey image by "
            f"{_MIN_GREY_CORRELATION} or more): export the radiograph without overlay, or remove it",
        )


def _refuse_label_map(image: Grey, display_name: str) -> None:
    if is_label_map(image):
        raise ImageError(
            "two_valued",
            f"{display_name} has only a few grey values: it is a mask, not an X-ray. If it marks lungs, name its "
            "folder `lung masks`; else name the folder after what it marks, such as `heart masks`, or remove it",
        )


def _refuse_blank(image: Grey, display_name: str) -> None:
    step = max(1, min(image.shape) // 64)
    sampled = without_extremes(image[::step, ::step])
    positions = [round(share * (sampled.size - 1)) for share in (0.01, 0.99)]
    low, high = (int(value) for value in np.partition(sampled, positions, axis=None)[positions])
    if high - low > _MIN_CONTRAST * _full_scale(min(high, _DEEPEST)):
        return
    values = f"the grey value {low}" if low == high else f"grey values from {low} to {high}"
    raise ImageError("blank", f"{display_name} has almost only {values}: export it again, or remove it")


def _invert(image: Grey) -> Grey:
    """Invert grey values in the depth in use; a black frame is collimation or padding and stays black."""
    inverted = np.subtract(image.dtype.type(_full_scale(int(image.max()))), image)
    if (border_pixels(image) == 0).mean() > 0.2:
        inverted[image == 0] = 0
    return inverted


def _full_scale(highest: int) -> int:
    """Return the largest value of the depth in use: 4095 for 12 bits stored in 16."""
    return (1 << max(8, highest.bit_length())) - 1
