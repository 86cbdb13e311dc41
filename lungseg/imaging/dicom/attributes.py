"""Fill in missing attributes of the pixels where the file determines them; name those that it does not determine."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lungseg.errors import ImageError
from lungseg.imaging.dicom.codestream import FrameHeader
from lungseg.imaging.dicom.pixel_layout import TAGS, frame_header, plain_length
from lungseg.imaging.dicom.tags import element_int, element_text, element_value
from lungseg.imaging.thumbnails import correlation

if TYPE_CHECKING:
    from pydicom.dataset import FileDataset

_LAYOUT = ("SamplesPerPixel", "BitsAllocated", "Rows", "Columns")
# One attribute follows from those before it.
_ORDER = (*_LAYOUT, "PhotometricInterpretation", "BitsStored", "HighBit", "PixelRepresentation", "PlanarConfiguration")
_COLOURS = ("RGB", "YBR", "ARGB", "HSV", "CMYK")
_ALIKE = 0.98  # correlation of the channels of a grey or tinted image in their right order


def assume_missing(dataset: "FileDataset", display_name: str) -> tuple[str, ...]:
    """Set each missing or empty attribute of the pixels that can have one value only; return their names.

    PixelRepresentation becomes 0, which the values may contradict. A grey image without PhotometricInterpretation
    becomes MONOCHROME2, unless another attribute says otherwise: its polarity is checked later, as that of a PNG.

    Raises:
        ImageError: `pixel_attributes`, one of them can have several values.

    """
    missing = _missing(dataset)
    if not missing or "PixelData" not in dataset:
        return ()
    header = frame_header(dataset)
    for name in _ORDER:
        value = _value(dataset, name, header) if name in missing else None
        if value is not None:
            setattr(dataset, name, value)
    unknown = [f"{name} ({TAGS[name]})" for name in _missing(dataset)]
    if unknown:
        raise ImageError(
            "pixel_attributes",
            f"{display_name} has no {', '.join(unknown)}, and its content allows several values: export it again",
        )
    return tuple(missing)


def _missing(dataset: "FileDataset") -> list[str]:
    names = [name for name in TAGS if element_value(dataset, name) is None]
    return names if element_int(dataset, "SamplesPerPixel") == 3 else [n for n in names if n != "PlanarConfiguration"]


def _value(dataset: "FileDataset", name: str, header: FrameHeader | None) -> int | str | None:
    """Return the one value that a missing attribute can have; None if there are several."""
    if name in _LAYOUT:
        return _layout_value(dataset, name, header)
    if name == "PhotometricInterpretation":
        return _photometric(dataset)
    return _planar(dataset, header) if name == "PlanarConfiguration" else _bit_values(dataset, header)[name]


def _layout_value(dataset: "FileDataset", name: str, header: FrameHeader | None) -> int | None:
    """Return the one value of an attribute of the layout; None if there are several."""
    photometric = element_text(dataset, "PhotometricInterpretation")
    if name == "SamplesPerPixel" and photometric:
        return 3 if photometric.startswith(_COLOURS) else 1
    if name == "BitsAllocated" and max(element_int(dataset, "BitsStored"), element_int(dataset, "HighBit") + 1) > 8:
        return 16
    if header is not None:
        stated: Mapping[str, int] = {
            "SamplesPerPixel": header.samples,
            "BitsAllocated": 8 if header.precision <= 8 else 16,
            "Rows": header.height,
            "Columns": header.width,
        }
        return stated[name] or None
    return _from_length(dataset, name)


def _from_length(dataset: "FileDataset", name: str) -> int | None:
    """Solve length = rows x columns x samples x bytes for one factor."""
    length = plain_length(dataset)
    known = {
        "SamplesPerPixel": element_int(dataset, "SamplesPerPixel"),
        "BitsAllocated": element_int(dataset, "BitsAllocated") // 8,
        "Rows": element_int(dataset, "Rows"),
        "Columns": element_int(dataset, "Columns"),
    }
    known.pop(name)
    others = int(np.prod(list(known.values()), dtype=np.int64))
    if not length or others <= 0:
        return None
    value = length // others
    has_pad_byte = others * value % 2 == 1 and length == others * value + 1
    if others * value != length and not has_pad_byte:
        return None
    allowed = {"SamplesPerPixel": (1, 3), "BitsAllocated": (1, 2)}.get(name)
    if value <= 0 or (allowed and value not in allowed):
        return None
    return value * 8 if name == "BitsAllocated" else value


def _photometric(dataset: "FileDataset") -> str | None:
    """Return what a grey image must be; several colour spaces have three samples."""
    if element_int(dataset, "SamplesPerPixel") != 1:
        return None
    if element_value(dataset, "RedPaletteColorLookupTableDescriptor") is not None:
        return "PALETTE COLOR"
    return "MONOCHROME1" if element_text(dataset, "PresentationLUTShape") == "INVERSE" else "MONOCHROME2"


def _bit_values(dataset: "FileDataset", header: FrameHeader | None) -> dict[str, int]:
    """Return BitsStored, HighBit and PixelRepresentation as the other attributes and the stream imply them."""
    allocated, high = element_int(dataset, "BitsAllocated"), element_int(dataset, "HighBit", -1)
    stored = element_int(dataset, "BitsStored", high + 1 if 0 <= high < allocated else 0)
    stored = stored or min(allocated, header.precision if header else allocated)
    return {"BitsStored": stored, "HighBit": stored - 1, "PixelRepresentation": int(bool(header and header.signed))}


def _planar(dataset: "FileDataset", header: FrameHeader | None) -> int | None:
    """Return the order of three channels. A stream states its own; plain pixels show it where they are nearly grey."""
    if header is not None or plain_length(dataset) is None:
        return 0
    if element_int(dataset, "BitsAllocated") not in (8, 16):
        return None
    kind = "u1" if element_int(dataset, "BitsAllocated") == 8 else "u2"
    cells: Any = np.frombuffer(dataset.PixelData, kind)
    cells = cells[: cells.size // 3 * 3]
    by_pixel, by_plane = (_likeness(channels) for channels in (cells.reshape(-1, 3).T, cells.reshape(3, -1)))
    is_grey = max(by_pixel, by_plane) >= _ALIKE and by_pixel != by_plane
    return int(by_plane > by_pixel) if is_grey else None


def _likeness(channels: NDArray[Any]) -> float:
    """Return the lowest correlation of the first channel with another one."""
    return min(correlation(channels[0], other) for other in channels[1:])
