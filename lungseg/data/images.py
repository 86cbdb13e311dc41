"""Bytes to grey arrays and back: the only codec code."""

import hashlib

import cv2
import numpy as np
import pycocotools.mask as coco
from numpy.typing import NDArray

from lungseg.errors import ImageError

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
_MAX_PIXELS = 1 << 28
_PNG_LEVEL = 2  # as small as level 6 within 5 %, encoded four times faster


def decode(content: bytes, what: str) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Decode a PNG, JPEG or TIFF file to one grey channel at its stored depth, u8 or u16[H,W].

    A colour picture is turned to luma, an alpha channel is dropped.

    Raises:
        ImageError: `undecodable`, or `depth` for anything but 8 or 16 bits.

    """
    if not content:
        raise ImageError("undecodable", f"{what} is empty (0 bytes): fetch it again")
    try:
        # Without rotation by EXIF: a mask file carries no EXIF, and both must keep lying on each other.
        flags = cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION
        array = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    except cv2.error as error:
        raise ImageError("undecodable", f"{what} cannot be decoded ({error.err})") from None
    if array is None:
        raise ImageError("undecodable", f"{what} is not a whole PNG, JPEG or TIFF file: fetch it again")
    if array.dtype not in (np.uint8, np.uint16):
        raise ImageError("depth", f"{what} holds {array.dtype}, expected 8 or 16 bit grey: export it again")
    if array.shape[0] * array.shape[1] > _MAX_PIXELS:
        raise ImageError("too_large", f"{what} has {array.shape[0]}x{array.shape[1]} px: no radiograph is that large")
    if array.ndim == 3:
        array = array[..., 0] if array.shape[2] < 3 else cv2.cvtColor(array[..., :3], cv2.COLOR_BGR2GRAY)
    return array.astype(np.uint8, copy=False) if array.dtype == np.uint8 else array.astype(np.uint16, copy=False)


def decode_mask(content: bytes, what: str) -> NDArray[np.uint8]:
    """Decode a mask file of any two-level or antialiased coding to u8[H,W] in {0,1}.

    Lung is what is brighter than half of the brightest value; an all-black mask stays empty.
    """
    array = decode(content, what)
    return (array > int(array.max()) / 2).astype(np.uint8)


def encode_image(image: NDArray[np.uint8]) -> bytes:
    """Encode u8[H,W] grey as PNG."""
    return _encode(image, [cv2.IMWRITE_PNG_COMPRESSION, _PNG_LEVEL])


def encode_mask(mask: NDArray[np.uint8]) -> bytes:
    """Encode u8[H,W] in {0,1} as a PNG of one bit a pixel; viewers show lungs white."""
    return _encode(mask * np.uint8(255), [cv2.IMWRITE_PNG_BILEVEL, 1])


def encode_rle(mask: NDArray[np.uint8]) -> str:
    """Encode u8[H,W] in {0,1} as the counts of a compressed COCO RLE (column-major, ASCII)."""
    return bytes(coco.encode(np.asfortranarray(mask))["counts"]).decode("ascii")


def decode_rle(counts: str, height: int, width: int) -> NDArray[np.uint8]:
    """Decode the counts of a compressed COCO RLE to u8[H,W] in {0,1}."""
    return np.ascontiguousarray(coco.decode({"size": [height, width], "counts": counts.encode("ascii")}))


def pixel_digest(image: NDArray[np.uint8] | NDArray[np.uint16]) -> str:
    """SHA-256 of an image's grey values and size: the same for one picture in two lossless files."""
    head = f"{image.dtype} {image.shape[0]}x{image.shape[1]}".encode()
    return hashlib.sha256(head + np.ascontiguousarray(image).tobytes()).hexdigest()


def _encode(array: NDArray[np.uint8], options: list[int]) -> bytes:
    done, content = cv2.imencode(".png", array, options)
    assert done, "OpenCV encodes every u8 array as PNG"
    return content.tobytes()
