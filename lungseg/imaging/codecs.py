"""Bytes to arrays and back: the only codec code, with DICOM's in dicom.py."""

import cv2
import numpy as np
import pycocotools.mask as coco
import xxhash
from numpy.typing import NDArray

from lungseg import MAX_IMAGE_PIXELS
from lungseg.arrays import Pixels
from lungseg.errors import ImageError
from lungseg.imaging.dicom import reader
from lungseg.imaging.dicom.reader import Tags
from lungseg.imaging.frames import has_multiple_frames

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
# Of a mask's pixels that are not black: what a label holds at least, all of them hold together, a lung has on its side.
_LABEL, _LABELS, _ONE_SIDE = 0.05, 0.9, 0.9
_INNER = 0.2  # of a label's pixels, those amid their like: an edge that fades has none
_RIM = 4  # samples that an edge may fade over, where few grey values make one of it
_BLACK = 0.25  # of a mask, background
_SAMPLES = 128  # a side: enough to find what is as large as a lung


def read_image(content: bytes, display_name: str, key: bytes | None = None) -> tuple[Pixels, Tags]:
    """Decode any file to its pixels, u8 or u16: [H,W] grey, or [H,W,3] in the order RGB; an alpha channel is dropped.

    A PNG, JPEG, TIFF, GIF, BMP, WebP or JPEG 2000 comes as it is stored, at its stored depth and without tags. A
    DICOM file comes as dicom.read says; key is the secret for its patient's pseudonym. A raw .IMG of JSRT is known by
    its name and size.

    Raises:
        ImageError: `undecodable`, `depth` for anything but 8 or 16 bits, `too_large`, `multi_frame` where there are
            several pages or frames, or a reason of dicom.read.

    """
    if not content:
        raise ImageError("undecodable", f"{display_name} is empty (0 bytes): fetch it again")
    if display_name.lower().endswith(".img"):
        return _read_jsrt(content, display_name), Tags()
    if reader.is_dicom(content):
        return reader.read(content, display_name, key)
    _check_format(content, display_name)
    return _decode(content, display_name), Tags()


def decode(content: bytes, display_name: str) -> Pixels:
    """Decode any file to one grey channel at its stored depth, u8 or u16[H,W]; a colour picture is turned to luma.

    Raises:
        ImageError: as read_image.

    """
    return to_grey(read_image(content, display_name)[0])


def to_grey(pixels: Pixels) -> Pixels:
    """Turn u8 or u16[H,W,3], RGB, to luma [H,W]; grey stays as it is. Source: ITU-R BT.601."""
    return cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY) if pixels.ndim == 3 else pixels  # type: ignore[return-value]


def decode_mask(content: bytes, display_name: str) -> NDArray[np.uint8]:
    """Decode a mask file to u8[H,W] in {0,1}: of two levels, whatever they are, antialiased, or of a level each lung.

    Lung is what is brighter than half of the brightest value, and where each lung has its own, of the darkest of these;
    an all-black mask stays empty.

    Raises:
        ImageError: as read_image, or `mask_levels` for labels that do not say which of them is lung.

    """
    array = decode(content, display_name)
    # Truncated, as nothing lies between whole numbers: u16 and u8 compare alike.
    return (array > _level_of_lung(array, display_name) // 2).view(np.uint8)


def encode_image(image: NDArray[np.uint8]) -> bytes:
    """Encode u8[H,W] grey, or u8[H,W,3] with blue first, as PNG."""
    return _encode(image, [cv2.IMWRITE_PNG_COMPRESSION, _PNG_LEVEL])


def encode_mask(mask: NDArray[np.uint8]) -> bytes:
    """Encode u8[H,W] in {0,1} as a PNG of one bit a pixel; viewers show lungs white."""
    return _encode(mask * np.uint8(255), [cv2.IMWRITE_PNG_BILEVEL, 1])


def encode_labels(mask: NDArray[np.uint8]) -> bytes:
    """Encode u8[H,W] of class numbers as a PNG of 8 bits that holds them as they are."""
    return _encode(mask, [cv2.IMWRITE_PNG_COMPRESSION, _PNG_LEVEL])


def decode_labels(content: bytes, display_name: str) -> NDArray[np.uint8]:
    """Decode a file of class numbers to u8[H,W], as they are.

    Raises:
        ImageError: as read_image, or `depth` where it is not of one channel of 8 bits.

    """
    labels, _ = read_image(content, display_name)
    if labels.ndim != 2 or labels.dtype != np.uint8:
        raise ImageError(
            "depth", f"{display_name} holds {labels.dtype} {labels.shape}, expected class numbers in 8 bit grey"
        )
    return labels.astype(np.uint8, copy=False)


def encode_rle(mask: NDArray[np.uint8]) -> str:
    """Encode u8[H,W] in {0,1} as the counts of a compressed COCO RLE (column-major, ASCII)."""
    # Turned by OpenCV, whose transposed copy is the column-major one, in a fifth of np.asfortranarray's time.
    return bytes(coco.encode(cv2.transpose(mask).T)["counts"]).decode("ascii")


def decode_rle(counts: str, height: int, width: int) -> NDArray[np.uint8]:
    """Decode the counts of a compressed COCO RLE to u8[H,W] in {0,1}."""
    return np.ascontiguousarray(coco.decode({"size": [height, width], "counts": counts.encode("ascii")}))


def pixel_digest(image: NDArray[np.uint8] | NDArray[np.uint16]) -> str:
    """XXH3 of 128 bits of an image's grey values and size: the same for one picture in two lossless files.

    It tells pictures apart, and need not withstand forgers; SHA-256 would take as long as the checks of a mask.
    """
    digest = xxhash.xxh3_128(f"{image.dtype} {image.shape[0]}x{image.shape[1]}".encode())
    digest.update(np.ascontiguousarray(image).data)
    return digest.hexdigest()


def _level_of_lung(array: Pixels, display_name: str) -> int:
    """Find the darkest grey value that stands for lung: the brightest of all, but for lungs of a value each."""
    brightest = int(array.max())
    step = max(1, min(array.shape) // _SAMPLES)
    seen = array[::step, ::step].copy()
    marked = int(np.count_nonzero(seen))
    cut_off = marked - int(np.count_nonzero(seen > brightest // 2))
    if cut_off < _LABEL * marked or marked > (1 - _BLACK) * seen.size or marked == 0:
        return brightest
    labels = _find_labels(seen, marked)
    if len(labels) < 2:
        return brightest
    columns = [np.nonzero(seen == label)[1] for label in labels]
    means = [float(places.mean()) for places in columns]
    middle = (min(means) + max(means)) / 2
    left = [float((places < middle).mean()) for places in columns]
    if all(max(share, 1 - share) >= _ONE_SIDE for share in left):
        return min(labels)
    if sum(places.size for places in columns) < _LABELS * marked:  # many greys: a mask that fades, or a JPEG
        return brightest
    found = f"{display_name} marks whole areas by the grey values {', '.join(map(str, labels))}"
    raise ImageError("mask_levels", f"{found}, expected one for lung, or one for each lung: save the lungs alone")


def _find_labels(seen: Pixels, marked: int) -> list[int]:
    """List the grey values but black that fill whole areas of a mask."""
    levels, counts = np.unique(seen[seen > 0], return_counts=True)
    large = zip(levels[counts >= _LABEL * marked].tolist(), counts[counts >= _LABEL * marked].tolist(), strict=True)
    return [level for level, count in large if _fills_an_area(seen, level, count)]


def _fills_an_area(seen: Pixels, level: int, count: int) -> bool:
    """Whether a grey value of a mask lies amid its like, and not along what is brighter, as an edge that fades does."""
    own = (seen == level).view(np.uint8)
    if cv2.countNonZero(cv2.erode(own, np.ones((3, 3), np.uint8))) < _INNER * count:
        return False
    near = cv2.dilate((seen > level).view(np.uint8), np.ones((2 * _RIM + 1, 2 * _RIM + 1), np.uint8))
    return int(np.count_nonzero((own == 1) & (near == 0))) >= _INNER * count


def _read_jsrt(content: bytes, display_name: str) -> NDArray[np.uint16]:
    """Read JSRT's raw file, and turn it round: its 12 bits are a film's optical density, high where air let it blacken.

    Source: Shiraishi et al., AJR 174, 2000: 2048 x 2048, no header, two bytes a pixel, the high one first.
    """
    expected = 2 * _JSRT_SIDE * _JSRT_SIDE
    if len(content) != expected:
        raise ImageError(
            "undecodable", f"{display_name} holds {len(content)} bytes, expected JSRT's {expected}: fetch it again"
        )
    density = np.frombuffer(content, ">u2").reshape(_JSRT_SIDE, _JSRT_SIDE)
    if density.max() >= _JSRT_LEVELS:
        raise ImageError(
            "undecodable", f"{display_name} is no JSRT film: {density.max()}, expected less than {_JSRT_LEVELS}"
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


def _decode(content: bytes, display_name: str) -> Pixels:
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # the error below replaces OpenCV's log lines
    try:
        # EXIF rotation is ignored: mask files have no EXIF, and image and mask must stay aligned.
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
    if array.ndim == 3:
        array = array[..., 0] if array.shape[2] < 3 else cv2.cvtColor(array[..., :3], cv2.COLOR_BGR2RGB)
    return array.astype(np.uint8, copy=False) if array.dtype == np.uint8 else array.astype(np.uint16, copy=False)


def _too_large(display_name: str) -> ImageError:
    return ImageError(
        "too_large", f"{display_name} has more than {MAX_IMAGE_PIXELS} px, expected a radiograph: leave it out"
    )


def _encode(array: NDArray[np.uint8], options: list[int]) -> bytes:
    done, content = cv2.imencode(".png", array, options)
    assert done, "OpenCV encodes every u8 array as PNG"
    return content.tobytes()
