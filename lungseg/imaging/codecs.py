"""Decode and encode image files, masks and run lengths. DICOM decoding is in `dicom`."""

from typing import NamedTuple

import cv2
import numpy as np
import xxhash
from numpy.typing import NDArray

from lungseg import MAX_IMAGE_PIXELS
from lungseg.arrays import Grey, Pixels
from lungseg.errors import ImageError
from lungseg.imaging import alpha as transparency
from lungseg.imaging.coco_rle import decode_runs, encode_runs
from lungseg.imaging.damage import is_damaged
from lungseg.imaging.dicom import reader
from lungseg.imaging.dicom.reader import Tags
from lungseg.imaging.frames import has_multiple_frames
from lungseg.imaging.lung_labels import darkest_lung_level
from lungseg.imaging.orientation import read_orientation, to_upright
from lungseg.imaging.run_lengths import Runs
from lungseg.imaging.tiff_directory import as_stored

SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".tif", ".tiff", ".gif", ".bmp", ".webp", ".jp2", ".j2k"),
    *(".dcm", ".dicom", ".img"),
)

_FORMATS = "PNG, JPEG, TIFF, GIF, BMP, WebP, JPEG 2000"
_SIGNATURES = (
    *(
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xd8\xff",
        b"II*\0",
        b"MM\0*",
        b"II+\0",
        b"MM\0+",
        b"GIF87a",
        b"GIF89a",
        b"BM",
        b"RIFF",
    ),
    *(b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51"),
)
_PNG_LEVEL = 2  # as small as level 6 within 5 %, encoded four times faster
_JSRT_SIDE, _JSRT_LEVELS = 2048, 4096
_SHOWN_VALUES = 5


class DecodedMask(NamedTuple):
    """A mask u8[H,W] in {0,1}, upright; the orientation of its file, 1 to 8; whether it is the alpha channel."""

    mask: NDArray[np.uint8]
    orientation: int
    is_alpha: bool


def read_image(content: bytes, display_name: str, key: bytes | None = None) -> tuple[Pixels, Tags]:
    """Decode any supported file to u8 or u16, [H,W] grey or [H,W,3] RGB, at its stored depth, upright.

    The tags state the orientation of the stored pixels; the other tags are of DICOM files only. Alpha is ignored,
    except that fully transparent rows and columns at the border become black. key is the secret for the patient's
    pseudonym. A raw .IMG file of JSRT is recognised by its name and size.

    Raises:
        ImageError: `undecodable`, `depth` (not 8 or 16 bits), `too_large`, `multi_frame` (several pages or frames), or
            a reason of `dicom.reader.read`.

    """
    pixels, alpha, tags = _read_stored(content, display_name, key)
    return to_upright(transparency.blacken_padding(pixels, alpha), tags.orientation), tags


def _read_stored(content: bytes, display_name: str, key: bytes | None = None) -> tuple[Pixels, Grey | None, Tags]:
    """Decode a file to its pixels as stored, its alpha channel, and its tags."""
    if not content:
        raise ImageError("undecodable", f"{display_name} is empty (0 bytes): download it again")
    if display_name.lower().endswith(".img"):
        return _read_jsrt(content, display_name), None, Tags()
    if reader.is_dicom(content):
        pixels, tags = reader.read(content, display_name, key)
        return pixels, None, tags
    _check_format(content, display_name)
    return *_decode(as_stored(content), display_name), Tags(orientation=read_orientation(content))


def decode(content: bytes, display_name: str) -> Pixels:
    """Decode any supported file to grey, u8 or u16[H,W], at its stored depth; colour becomes luma.

    Raises:
        ImageError: as read_image.

    """
    return to_grey(read_image(content, display_name)[0])


def to_grey(pixels: Pixels) -> Pixels:
    """Convert RGB, u8 or u16[H,W,3], to luma [H,W]; return grey unchanged. Source: ITU-R BT.601."""
    return cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY) if pixels.ndim == 3 else pixels  # type: ignore[return-value]


def decode_mask(content: bytes, display_name: str) -> NDArray[np.uint8]:
    """Decode a mask file to u8[H,W] in {0,1}, upright; see `read_mask`."""
    return read_mask(content, display_name).mask


def read_mask(content: bytes, display_name: str, values: str = "") -> DecodedMask:
    """Decode a mask file; values: the grey values that are marked, such as `1,2`; `` to find them as follows.

    Accepts any two grey levels, antialiased edges, and one grey level for each lung. The threshold is half of the
    brightest level, or half of the darkest lung's level if each lung has its own. An all-black mask stays empty. A mask
    that only the alpha channel shows is read from there.

    Raises:
        ImageError: as read_image, or `mask_levels` if it has labels and none is clearly lung.

    """
    pixels, alpha, tags = _read_stored(content, display_name)
    if values:
        marked = _with_values(to_grey(pixels), values, display_name)
        return DecodedMask(to_upright(marked, tags.orientation), tags.orientation, is_alpha=False)
    alpha = transparency.hidden_alpha(as_stored(content)) if alpha is None else alpha
    levels, is_alpha = transparency.mask_levels(to_grey(pixels), alpha)
    return DecodedMask(to_upright(_above_half(levels, display_name), tags.orientation), tags.orientation, is_alpha)


def count_values(content: bytes, display_name: str, values: str) -> int:
    """Count the pixels of a mask file that have one of the grey values, such as `1,2`.

    Raises:
        ImageError: as read_image.

    """
    pixels, _, _ = _read_stored(content, display_name)
    return int(np.isin(to_grey(pixels), [int(value) for value in values.split(",")]).sum())


def _with_values(array: Pixels, values: str, display_name: str) -> NDArray[np.uint8]:
    """Mark the pixels with one of the values, such as `1,2`; refuse a mask that has only other values."""
    marked = np.isin(array, [int(value) for value in values.split(",")])
    if array.any() and not marked.any():
        levels = np.unique(array)
        shown = ", ".join(map(str, levels[:_SHOWN_VALUES])) + (", ..." if levels.size > _SHOWN_VALUES else "")
        raise ImageError(
            "mask_levels",
            f"{display_name} has the grey values {shown}, but its dataset.json says {values} for lung: correct one "
            "of them",
        )
    return marked.view(np.uint8)


def _above_half(array: Pixels, display_name: str) -> NDArray[np.uint8]:
    # Integer division gives the same result for u8 and u16.
    return (array > darkest_lung_level(array, display_name) // 2).view(np.uint8)


def encode_image(image: NDArray[np.uint8]) -> bytes:
    """Encode u8[H,W] grey, or u8[H,W,3] in BGR order, as PNG."""
    return _encode(image, [cv2.IMWRITE_PNG_COMPRESSION, _PNG_LEVEL])


def encode_mask(mask: NDArray[np.uint8]) -> bytes:
    """Encode u8[H,W] in {0,1} as a 1-bit PNG; viewers show lungs white."""
    return _encode(mask * np.uint8(255), [cv2.IMWRITE_PNG_BILEVEL, 1])


def encode_labels(mask: NDArray[np.uint8]) -> bytes:
    """Encode class numbers, u8[H,W], unchanged as an 8-bit PNG."""
    return _encode(mask, [cv2.IMWRITE_PNG_COMPRESSION, _PNG_LEVEL])


def decode_labels(content: bytes, display_name: str) -> NDArray[np.uint8]:
    """Decode a file of class numbers to u8[H,W], unchanged.

    Raises:
        ImageError: as read_image, or `depth` if it is not 8-bit grey.

    """
    labels, _ = read_image(content, display_name)
    if labels.ndim != 2 or labels.dtype != np.uint8:
        raise ImageError(
            "depth", f"{display_name} holds {labels.dtype} {labels.shape}, expected class numbers in 8 bit grey"
        )
    return labels.astype(np.uint8, copy=False)


def encode_rle(mask: NDArray[np.uint8]) -> str:
    """Encode u8[H,W] in {0,1} as the counts of a compressed COCO RLE (column-major, ASCII)."""
    return encode_runs(Runs.from_mask(mask))


def decode_rle(counts: str | None, height: int | None, width: int | None) -> NDArray[np.uint8]:
    """Decode the counts of a compressed COCO RLE to u8[H,W] in {0,1}.

    Raises:
        InputError: the counts are not those of a mask of this size.

    """
    return decode_runs(counts, height, width).to_mask()


def pixel_digest(image: NDArray[np.uint8] | NDArray[np.uint16]) -> str:
    """Compute the 128-bit XXH3 digest of pixels, size and depth; equal for the same image in two lossless formats.

    It is not a cryptographic hash: SHA-256 would take as long as all checks of a mask.
    """
    digest = xxhash.xxh3_128(f"{image.dtype} {image.shape[0]}x{image.shape[1]}".encode())
    digest.update(np.ascontiguousarray(image).data)
    return digest.hexdigest()


def _read_jsrt(content: bytes, display_name: str) -> NDArray[np.uint16]:
    """Read a raw JSRT file and invert it: its 12 bits are optical density, which is high in air.

    Source: Shiraishi et al., AJR 174, 2000: 2048 x 2048, no header, 16-bit big-endian.
    """
    expected = 2 * _JSRT_SIDE * _JSRT_SIDE
    if len(content) != expected:
        raise ImageError(
            "undecodable",
            f"{display_name} holds {len(content)} bytes, expected {expected} for a JSRT film: download it again",
        )
    density = np.frombuffer(content, ">u2").reshape(_JSRT_SIDE, _JSRT_SIDE)
    if density.max() >= _JSRT_LEVELS:
        raise ImageError(
            "undecodable",
            f"{display_name} is not a JSRT film: grey value {density.max()}, expected less than {_JSRT_LEVELS}",
        )
    return (_JSRT_LEVELS - 1 - density).astype(np.uint16)


def _check_format(content: bytes, display_name: str) -> None:
    """Refuse unsupported formats and files with several images before decoding."""
    if not content.startswith(_SIGNATURES):
        raise ImageError(
            "undecodable", f"{display_name} is not a {_FORMATS} or DICOM file: download it again, or convert it"
        )
    if has_multiple_frames(content):
        raise ImageError(
            "multi_frame", f"{display_name} holds several pages or frames, expected one: save the right one alone"
        )


def _decode(content: bytes, display_name: str) -> tuple[Pixels, Grey | None]:
    """Decode a file to its pixels as stored and its alpha channel."""
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # the error below replaces OpenCV's log lines
    try:
        # One rule for all formats: OpenCV's decoders differ, so `to_upright` obeys the tag.
        flags = cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION
        array = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    except cv2.error as error:
        if "CV_IO_MAX_IMAGE_PIXELS" in error.err:
            raise _too_large(display_name) from None
        raise ImageError("undecodable", f"{display_name} cannot be decoded ({error.err})") from None
    if array is None:
        raise ImageError("undecodable", f"{display_name} is not a complete {_FORMATS} file: download it again")
    if array.shape[0] * array.shape[1] > MAX_IMAGE_PIXELS:  # OpenCV's own limit is higher if it was imported first
        raise _too_large(display_name)
    if array.dtype not in (np.uint8, np.uint16):
        raise ImageError("depth", f"{display_name} holds {array.dtype}, expected 8 or 16 bit grey: export it again")
    if is_damaged(content, array):
        raise ImageError(
            "undecodable", f"{display_name} is damaged: parts of its picture cannot be decoded: download it again"
        )
    alpha = array[..., 3] if array.ndim == 3 and array.shape[2] == 4 else None
    if array.ndim == 3:
        array = array[..., 0] if array.shape[2] < 3 else cv2.cvtColor(array[..., :3], cv2.COLOR_BGR2RGB)
    return array, alpha  # type: ignore[return-value]


def _too_large(display_name: str) -> ImageError:
    return ImageError(
        "too_large", f"{display_name} has more than {MAX_IMAGE_PIXELS} px, expected a radiograph: leave it out"
    )


def _encode(array: NDArray[np.uint8], options: list[int]) -> bytes:
    done, content = cv2.imencode(".png", array, options)
    assert done, "OpenCV encodes every u8 array as PNG"
    return content.tobytes()
