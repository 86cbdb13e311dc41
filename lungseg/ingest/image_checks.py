"""The input gate: which pictures are taken in, what is put right in them, and what is odd about them."""

from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np
from numpy.typing import NDArray

from lungseg.arrays import Grey
from lungseg.errors import ImageError
from lungseg.imaging import codecs
from lungseg.imaging.dicom.reader import Tags
from lungseg.imaging.thumbnails import border_pixels, correlation, find_visible_area, percentile_ranks, thumbnail
from lungseg.ingest.reason_codes import Note

_MIN_SIDE = 32  # px; a smaller picture is a thumbnail or an icon
_MAX_ASPECT = 2.5  # long side to short; frontal chests lie within 1.7
_BLANK_SPREAD = 1 / 80  # of the depth in use: three grey levels of 8 bits, 51 of 12 bits
_GREY_CORRELATION = (
    0.98  # of colour channels; tinted and JPEG-coded films lie above 0.99, photographs and overlays below
)
_THUMBNAIL = 64  # px a side, for all that is judged by eye
_TEMPLATE = 32
# Shenzhen and Montgomery at 256 px, bare and padded, correlate by 0.25 or more; their negatives by -0.06 or less.
_INVERTED = -0.2
_CHEST_LIKE = 0.15
# A chest lying on its side leans to inverted by up to 0.71 of how well it fits lying; a negative by 1 or more.
_OVER_SIDEWAYS = 0.85


@dataclass(frozen=True)
class CheckedImage:
    """A picture that passed: image u8 or u16[H,W], bones light; what its file tells; repairs; flags."""

    image: Grey
    tags: Tags
    repairs: tuple[Note, ...]
    flags: tuple[Note, ...]


def read_image(content: bytes, what: str, key: bytes | None = None) -> CheckedImage:
    """Read a file and let it in as one grey picture with light bones, or say why not.

    Raises:
        ImageError: the codes of `codecs.read_image`, and `too_small`, `extreme_aspect`, `colour`, `blank`.

    """
    pixels, tags = codecs.read_image(content, what, key)
    image, repairs, flags = check_pixels(pixels, what)
    return CheckedImage(image, tags, repairs, flags)


def check_pixels(pixels: Grey, what: str) -> tuple[Grey, tuple[Note, ...], tuple[Note, ...]]:
    """Judge decoded pixels, u8 or u16[H,W] or [H,W,3]: the grey picture, its repairs, its flags.

    Raises:
        ImageError: `too_small`, `extreme_aspect`, `colour` or `blank`.

    """
    _refuse_shape(pixels.shape[0], pixels.shape[1], what)
    repairs: tuple[Note, ...] = ()
    if pixels.ndim == 3:
        _refuse_colour(pixels, what)
        repairs += (Note("grey_as_colour", f"{what} stores a grey image as colour: its luma is used"),)
        pixels = codecs.to_grey(pixels)
    _refuse_blank(pixels, what)
    upright, sideways = chest_likeness(pixels)
    if upright <= _INVERTED and -upright >= _OVER_SIDEWAYS * sideways:
        repairs += (Note("inverted", f"{what} shows dark bones: its grey values were inverted"),)
        return _turn_round(pixels), repairs, ()
    flags = (
        (Note("polarity_unsure"), upright < 0),
        (Note("not_chest_like"), upright < _CHEST_LIKE),
    )
    return pixels, repairs, tuple(flag for flag, is_set in flags if is_set)


def chest_likeness(image: Grey) -> tuple[float, float]:
    """Correlate a picture's ranks with a drawn frontal chest, upright and, whichever is more, lying on either side.

    Each from -1 to 1; above 0 bones are light, below 0 dark. Ranks, so that no tone curve matters.
    """
    thumb = thumbnail(image, _THUMBNAIL)
    rows, columns, live = find_visible_area(thumb)
    shape = (_TEMPLATE, _TEMPLATE)
    picture = cv2.resize(thumb[rows, columns], shape, interpolation=cv2.INTER_AREA)
    seen = cv2.resize(np.asarray(live[rows, columns], np.float32), shape, interpolation=cv2.INTER_AREA) > 0.5
    ordered = percentile_ranks(np.asarray(picture, np.float32)[seen])
    upright, *sideways = (correlation(ordered, np.rot90(_chest(), turns)[seen]) for turns in (0, 1, 3))
    return upright, max(sideways)


@cache
def _chest() -> NDArray[np.float64]:
    """Draw a frontal chest by formula, light positive: spine, abdomen; lungs, and air over shoulders, dark.

    x and y run from -1 to 1 over the picture. The parts are laid out by anatomy, no picture went into them.
    """
    y, x = np.meshgrid(*[(np.arange(_TEMPLATE) + 0.5) * (2 / _TEMPLATE) - 1] * 2, indexing="ij")
    spine = np.exp(-np.square(x / 0.2))
    abdomen = 1 / (1 + np.exp((0.62 - y) / 0.08))
    # The fourth power makes flat ellipses with a soft rim.
    lungs = np.exp(-np.square(np.square((np.abs(x) - 0.45) / 0.25) + np.square((y + 0.15) / 0.62)))
    air = 8 * np.clip(np.abs(x) - 0.35, 0, None) * np.clip(-y - 0.6, 0, None)
    return np.asarray(2 * spine + 0.7 * abdomen * (1 - spine) - lungs - air)


def _refuse_shape(height: int, width: int, what: str) -> None:
    if min(height, width) < _MIN_SIDE:
        raise ImageError("too_small", f"{what} is {height}x{width} px, expected {_MIN_SIDE} or more a side")
    if max(height, width) > _MAX_ASPECT * min(height, width):
        raise ImageError(
            "extreme_aspect",
            f"{what} is {height}x{width} px, expected one side at most {_MAX_ASPECT} times the other: "
            "cut the chest out of it, or take it out",
        )


def _refuse_colour(pixels: Grey, what: str) -> None:
    """Refuse what is more than one grey picture in three channels; a channel of one value is part of a tint."""
    channels = [thumbnail(pixels[..., channel], _THUMBNAIL) for channel in range(3)]
    varying = [channel for channel in channels if np.ptp(channel) > 0]
    found = min((correlation(varying[0], other) for other in varying[1:]), default=1.0)
    if found < _GREY_CORRELATION:
        raise ImageError(
            "colour",
            f"{what} is truly coloured (its channels correlate by {found:.2f}, those of a grey picture by "
            f"{_GREY_CORRELATION} or more): export the radiograph without overlay, or take it out",
        )


def _refuse_blank(image: Grey, what: str) -> None:
    step = max(1, min(image.shape) // 64)
    sampled = image[::step, ::step]
    places = [round(share * (sampled.size - 1)) for share in (0.01, 0.99)]
    low, high = (int(value) for value in np.partition(sampled, places, axis=None)[places])
    if high - low > _BLANK_SPREAD * _full_scale(image):
        return
    found = f"the one grey value {low}" if low == high else f"grey values from {low} to {high}"
    raise ImageError("blank", f"{what} holds almost only {found}: export it again")


def _turn_round(image: Grey) -> Grey:
    """Turn grey values round in the depth in use; a black frame is collimation or padding and stays black."""
    turned = np.subtract(image.dtype.type(_full_scale(image)), image)
    if (border_pixels(image) == 0).mean() > 0.2:
        turned[image == 0] = 0
    return turned


def _full_scale(image: Grey) -> int:
    """Largest value of the depth in use: 12 bits in words of 16 are 12."""
    return int((1 << max(8, int(image.max()).bit_length())) - 1)
