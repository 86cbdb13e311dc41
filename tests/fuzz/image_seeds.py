"""Draw a small chest and encode it in every image format that lungseg reads."""

import functools
import io
from random import Random
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

U8 = NDArray[np.uint8]


@functools.cache
def draw() -> tuple[U8, U8]:
    """Draw two dark lungs on noise: image u8[72,64], mask u8[72,64] in {0,1}."""
    mask = np.zeros((72, 64), np.uint8)
    for column in (18, 46):
        cv2.ellipse(mask, (column, 36), (9, 22), 0, 0, 360, 1, -1)
    noise = np.random.default_rng(0).normal(0, 9, mask.shape)
    return np.clip(np.where(mask == 1, 70, 170) + noise, 1, 255).astype(np.uint8), mask


def encoded(suffix: str, array: NDArray[Any], *options: int) -> bytes:
    """Encode with OpenCV."""
    return cv2.imencode(f".{suffix}", array, options)[1].tobytes()


def with_pillow(array: NDArray[Any], kind: str, mode: str = "", **options: Any) -> bytes:
    """Encode with Pillow, which writes variants that OpenCV does not."""
    stream = io.BytesIO()
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(stream, kind, **options)
    return stream.getvalue()


@functools.cache
def seeds() -> dict[str, tuple[bytes, ...]]:
    """Return valid files by ending."""
    grey = draw()[0]
    deep, colour = grey.astype(np.uint16) * 256, cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR)
    alpha = cv2.cvtColor(grey, cv2.COLOR_GRAY2BGRA)
    tiffs = [encoded("tif", array, cv2.IMWRITE_TIFF_COMPRESSION, coding) for array in (grey, deep) for coding in (1, 5)]
    return {
        "png": (
            *(encoded("png", array) for array in (grey, deep, colour, alpha)),
            encoded("png", grey, cv2.IMWRITE_PNG_BILEVEL, 1),
            with_pillow(grey, "PNG", "P"),
            with_pillow(grey, "PNG", "LA"),
        ),
        "jpg": (
            encoded("jpg", grey),
            encoded("jpg", colour, cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
            encoded("jpg", colour, cv2.IMWRITE_JPEG_RST_INTERVAL, 2),
            with_pillow(colour, "JPEG", "CMYK"),
        ),
        "tif": (
            *tiffs,
            encoded("tif", colour, cv2.IMWRITE_TIFF_COMPRESSION, 8),
            encoded("tif", grey.astype(np.float32)),
            *(with_pillow(grey, "TIFF", compression=coding) for coding in ("packbits", "tiff_jpeg", "tiff_deflate")),
            with_pillow(grey, "TIFF", "1", compression="group4"),
            with_pillow(grey, "TIFF", "P"),
        ),
        "webp": (encoded("webp", colour), encoded("webp", alpha, cv2.IMWRITE_WEBP_QUALITY, 101)),
        "bmp": (encoded("bmp", grey), encoded("bmp", colour), with_pillow(grey, "BMP", "1")),
        "gif": (with_pillow(grey, "GIF"),),
        "jp2": (encoded("jp2", grey), encoded("jp2", deep)),
    }


def choose(suffix: str, random: Random) -> bytes:
    """Choose one of the valid files."""
    return random.choice(seeds()[suffix])
