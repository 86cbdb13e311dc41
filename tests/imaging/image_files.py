"""Draw small images and write them in file formats."""

import io
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

U8 = NDArray[np.uint8]
GREY: U8 = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (48, 64), dtype=np.uint8), (0, 0), 2.0)  # type: ignore[assignment]
DEEP = GREY.astype(np.uint16) * 257
BILEVEL = np.greater(GREY, GREY.mean()).astype(np.uint8)
COLOUR = np.dstack([GREY, GREY // 2, 255 - GREY])
MASK: U8 = np.zeros((40, 50), np.uint8)
cv2.ellipse(MASK, (15, 20), (8, 14), 0.0, 0.0, 360.0, 1, -1)
cv2.ellipse(MASK, (36, 20), (8, 14), 0.0, 0.0, 360.0, 1, -1)
TURNED = Image.Exif()
TURNED[0x0112] = 6  # "rotate by 90 degrees"


def pil(array: NDArray[Any], suffix: str, mode: str = "", **options: Any) -> bytes:
    stream = io.BytesIO()
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(stream, suffix, **options)
    return stream.getvalue()


def opencv(array: NDArray[Any], suffix: str) -> bytes:
    done, content = cv2.imencode(suffix, array)
    assert done
    return content.tobytes()


def palette(levels: U8) -> bytes:
    """A palette in reverse grey order, so that indices taken for greys would show."""
    image = Image.fromarray(np.uint8(255) - levels)
    image.putpalette([255 - number for number in range(256) for _ in range(3)])
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()
