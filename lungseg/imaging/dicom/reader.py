"""Read the pixels and selected tags of frontal chest radiographs in DICOM.

Only the elements listed here are read, so no other patient data can reach a row, an error or a log.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lungseg import MAX_IMAGE_PIXELS
from lungseg.arrays import Pixels
from lungseg.errors import ImageError
from lungseg.imaging.damage import is_damaged
from lungseg.imaging.dicom.attributes import assume_missing
from lungseg.imaging.dicom.pixel_layout import describe_repairs, fit_to_stream, read_statement
from lungseg.imaging.dicom.pseudonym import pseudonym
from lungseg.imaging.dicom.quiet import silence_libraries
from lungseg.imaging.dicom.rendering import Rendering, Table, Window, render
from lungseg.imaging.dicom.stored_bits import StoredBits, find_stored_bits
from lungseg.imaging.dicom.tags import (
    Tags,
    check_chest,
    check_frontal,
    element_int,
    element_numbers,
    element_text,
    element_value,
    extract_tags,
    sequence_items,
)

if TYPE_CHECKING:
    from pydicom.dataset import Dataset, FileDataset

__all__ = ["Tags", "is_dicom", "pseudonym", "read"]

_COLOURS = [f"{colour}PaletteColorLookupTable" for colour in ("Red", "Green", "Blue")]
_FLOATS = ["FloatPixelData", "DoubleFloatPixelData"]
_NAMES = """
SpecificCharacterSet SOPClassUID Modality BodyPartExamined AnatomicRegionSequence ViewPosition ViewCodeSequence
PatientOrientation PatientID PatientAge PatientBirthDate PatientSex StudyDate PixelSpacing ImagerPixelSpacing
ManufacturerModelName Rows Columns NumberOfFrames SamplesPerPixel PhotometricInterpretation PresentationLUTShape
PlanarConfiguration BitsAllocated BitsStored HighBit PixelRepresentation PixelPaddingValue PixelPaddingRangeLimit
ModalityLUTSequence RescaleSlope RescaleIntercept VOILUTSequence WindowCenter WindowWidth VOILUTFunction
ExtendedOffsetTable ExtendedOffsetTableLengths PixelData
"""
_ELEMENTS = [
    *_NAMES.split(),
    *_FLOATS,
    *(f"{colour}{part}" for colour in _COLOURS for part in ("Descriptor", "Data")),
    *(f"Segmented{colour}Data" for colour in _COLOURS),
]
_JPEG_LS, _END_OF_IMAGE = ("1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81"), b"\xff\xd9"
# A fixed decoder for each transfer syntax, so that pixels do not depend on the installed packages.
_DECODERS = {
    "1.2.840.10008.1.2.4.50": "pillow",  # JPEG
    **dict.fromkeys(_JPEG_LS, "imagecodecs"),
    "1.2.840.10008.1.2.4.90": "pylibjpeg",  # JPEG 2000, lossless and lossy
    "1.2.840.10008.1.2.4.91": "pylibjpeg",
    "1.2.840.10008.1.2.5": "pylibjpeg",  # RLE
    **dict.fromkeys(("1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70"), "imagecodecs"),  # JPEG Lossless
}
_UNDEFINED = 0xFFFFFFFF  # length of encapsulated pixel data
_FIRST_GROUPS = (b"\x02\0", b"\x08\0", b"\0\x02", b"\0\x08")
_JPEG_12_BITS = "1.2.840.10008.1.2.4.51"


def is_dicom(content: bytes) -> bool:
    """Return whether a file starts with the DICOM preamble, or directly with an element of group 2 or 8."""
    if content[128:132] == b"DICM":
        return True
    if len(content) < 8 or content[:2] not in _FIRST_GROUPS:
        return False
    explicit = content[4:6].isalpha() and content[4:6].isupper()
    return explicit or int.from_bytes(content[4:8], "little") <= 64  # plausible length of an element with implicit VR


def read(content: bytes, display_name: str, key: bytes | None = None) -> tuple[Pixels, Tags]:
    """Read a radiograph and its tags: u16[H,W] over the whole range with black air, or u8 or u16[H,W,3] RGB.

    Applies the modality LUT or rescale, then the first VOI LUT or window, then inverts MONOCHROME1. A window that would
    show almost nothing is skipped. Padding becomes black; overlays are ignored. Missing attributes of the pixels are
    assumed, and bits beyond BitsStored are used, where the file leaves one reading only; both are repairs.

    Raises:
        ImageError: `undecodable`, `no_pixels`, `not_radiograph`, `body_part`, `lateral_view`, `oblique_view`,
            `multi_frame`, `depth`, `too_large`, `codec_missing`, `pixel_attributes` or `stored_bits_unclear`. All
            except the last and some cases of `undecodable` are raised before decoding.

    """
    silence_libraries()
    dataset = _open(content, display_name)
    check_chest(dataset, display_name)
    check_frontal(dataset, display_name)
    with _wrap_library_errors(display_name, "decoded"):
        assumed = assume_missing(dataset, display_name)
        stated = read_statement(dataset)
        fit_to_stream(dataset, display_name)
    _check_layout(dataset, display_name)
    pixels = _decode(dataset, display_name)
    patient = element_value(dataset, "PatientID")
    tags = extract_tags(dataset, pseudonym(str(patient), key) if key and patient else "")
    if pixels.ndim == 2:
        pixels = _render(dataset, pixels, stated.stored, assumed, display_name)
    return pixels, replace(tags, repairs=describe_repairs(dataset, stated, assumed, display_name))


@contextmanager
def _wrap_library_errors(display_name: str, action: str) -> Iterator[None]:
    """Convert any exception of a DICOM library to ImageError, without quoting file content."""
    try:
        yield
    except ImageError:
        raise
    except BaseException as error:
        # The RLE decoder is written in Rust; its panics are not subclasses of Exception.
        is_library_error = isinstance(error, Exception) or type(error).__name__ == "PanicException"
        if not is_library_error or isinstance(error, MemoryError):
            raise
        raise ImageError(
            "undecodable",
            f"{display_name} cannot be {action} as DICOM, as its content is truncated, damaged or does not fit its "
            "header: download or export it again",
        ) from None


def _open(content: bytes, display_name: str) -> "FileDataset":
    """Parse the listed elements; refuse files without pixels."""
    from pydicom import dcmread
    from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    with _wrap_library_errors(display_name, "read"):
        dataset = dcmread(io.BytesIO(content), force=True, specific_tags=[*_ELEMENTS])
        implicit, little = dataset.original_encoding
        plain = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        dataset.file_meta.setdefault("TransferSyntaxUID", ImplicitVRLittleEndian if implicit else plain)
        kind = UID(dataset.get("SOPClassUID") or dataset.file_meta.get("MediaStorageSOPClassUID") or "").name
    if any(name in dataset for name in ("PixelData", *_FLOATS)):
        _check_length(dataset, display_name)
        return dataset
    if kind and "Image Storage" not in kind:
        raise ImageError(
            "no_pixels", f"{display_name} is a DICOM file without an image (for example a report): leave it out"
        )
    raise ImageError("undecodable", f"{display_name} ends before its pixels: download or export it again")


def _check_length(dataset: "Dataset", display_name: str) -> None:
    """Refuse truncated pixel data, which pydicom accepts."""
    from pydicom.dataelem import RawDataElement

    with _wrap_library_errors(display_name, "read"):
        pixels: Any = dataset.get_item("PixelData")
    if not isinstance(pixels, RawDataElement) or pixels.length == _UNDEFINED:
        return
    length = len(pixels.value or b"")
    if length != pixels.length:
        raise ImageError(
            "undecodable", f"{display_name} holds {length} of {pixels.length} bytes of pixels: download it again"
        )


def _check_layout(dataset: "Dataset", display_name: str) -> None:
    """Refuse files that do not hold one image of supported size and depth."""
    if element_int(dataset, "NumberOfFrames", 1) > 1:
        raise ImageError(
            "multi_frame", f"{display_name} holds several frames, expected one: export the right one alone"
        )
    allocated, stored = element_int(dataset, "BitsAllocated"), element_int(dataset, "BitsStored")
    height, width = element_int(dataset, "Rows"), element_int(dataset, "Columns")
    if min(allocated, height, width) <= 0 or element_int(dataset, "SamplesPerPixel", 1) not in (1, 3):
        raise ImageError("undecodable", f"{display_name} has invalid rows, columns, bits or samples: export it again")
    if "PixelData" not in dataset or allocated not in (8, 16) or not 0 < stored <= allocated:
        kind = f"{allocated} bit" if "PixelData" in dataset else "floating point"
        raise ImageError(
            "depth", f"{display_name} holds {kind} pixels ({stored} stored), expected 8 or 16 bit: export it again"
        )
    if height * width > MAX_IMAGE_PIXELS:
        raise ImageError(
            "too_large", f"{display_name} states {height}x{width} px, more than any radiograph: leave it out"
        )


def _decode(dataset: "FileDataset", display_name: str) -> NDArray[Any]:
    """Decode the stored values, [H,W], or RGB, [H,W,3]."""
    from pydicom.encaps import generate_frames
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.pixels.processing import apply_color_lut
    from pydicom.pixels.utils import pixel_array

    from lungseg.imaging.dicom import jpeg_plugin

    with _wrap_library_errors(display_name, "decoded"):
        coding = dataset.file_meta.TransferSyntaxUID
        jpeg_plugin.register()
        plugins = get_decoder(coding).available_plugins if coding.is_encapsulated else ("none needed",)
    if not plugins:
        raise ImageError(
            "codec_missing",
            f"{display_name} uses {coding.name}, and its decoder is not installed: export it again, uncompressed or as "
            "JPEG 2000",
        )
    with _wrap_library_errors(display_name, "decoded"):
        if coding in _JPEG_LS and _END_OF_IMAGE not in dataset.PixelData[-16:]:
            raise EOFError  # its decoder spends seconds searching for the end of a truncated file
        decoder = _DECODERS.get(str(coding), "")
        if coding == _JPEG_12_BITS:
            decoder = "imagecodecs" if element_int(dataset, "BitsStored") > 8 else "pillow"  # for 8 bits only
        pixels = pixel_array(dataset, decoding_plugin=decoder, correct_unused_bits=False)
        if element_text(dataset, "PhotometricInterpretation") == "PALETTE COLOR":
            pixels = apply_color_lut(pixels, dataset)[..., :3]
        lost_pixels = coding.is_encapsulated and is_damaged(
            next(generate_frames(dataset.PixelData, number_of_frames=1)), pixels
        )
    if lost_pixels:
        raise ImageError(
            "undecodable", f"{display_name} is damaged: parts of its picture cannot be decoded: export it again"
        )
    stated = (element_int(dataset, "Rows"), element_int(dataset, "Columns"))
    if pixels.shape not in (stated, (*stated, 3)) or pixels.dtype.kind not in "iu" or pixels.itemsize > 2:
        raise ImageError(
            "undecodable",
            f"{display_name} holds pixels of another size or kind than its header states: download or export it again",
        )
    return pixels.astype(pixels.dtype.newbyteorder("="), copy=False)


def _render(
    dataset: "FileDataset", pixels: NDArray[Any], stated: StoredBits, assumed: tuple[str, ...], display_name: str
) -> NDArray[np.uint16]:
    """Find the bits that hold the picture, write them to the dataset, and render it."""
    width_known = not {"BitsStored", "HighBit"} <= set(assumed)
    cells = pixels.view(f"u{pixels.itemsize}")
    stored_bits = find_stored_bits(cells, stated, width_known, "PixelRepresentation" not in assumed)
    is_cut = stored_bits is not None and width_known and stored_bits.bits > stated.bits
    if stored_bits is None or (is_cut and sequence_items(dataset, "ModalityLUTSequence")):
        raise ImageError(
            "stored_bits_unclear",
            f"{display_name} states {stated.bits} bits stored, but higher bits are set, and they are neither clearly "
            "picture nor clearly something else: export it again",
        )
    dataset.BitsStored, dataset.PixelRepresentation = stored_bits.bits, int(stored_bits.signed)
    dataset.HighBit = stored_bits.bits + stored_bits.shift - 1
    rendering = _rendering(dataset, stored_bits)
    if is_cut and rendering.voi is not None and not _reaches_beyond(rendering.voi, rendering, stated):
        rendering = replace(rendering, voi=None)  # it would show the stated range only
    return render(pixels, rendering)


def _reaches_beyond(voi: Table | Window, rendering: Rendering, stated: StoredBits) -> bool:
    """Return whether a window or VOI LUT includes values that need more bits than stated."""
    highest = 1 << (stated.bits - stated.signed)
    limit = max(highest * rendering.slope, rendering.slope) + rendering.intercept
    end = voi.first + voi.entries.size if isinstance(voi, Table) else voi.centre + voi.width / 2
    return end > limit + 1


def _rendering(dataset: "FileDataset", stored_bits: StoredBits) -> Rendering:
    """Collect the elements that describe how to display the stored values."""
    is_little_endian = dataset.file_meta.TransferSyntaxUID.is_little_endian
    ends = element_numbers(dataset, "PixelPaddingValue")
    centres, widths = element_numbers(dataset, "WindowCenter"), element_numbers(dataset, "WindowWidth")
    function = element_text(dataset, "VOILUTFunction") or "LINEAR"
    window = Window(centres[0], widths[0], function) if centres and widths else None
    return Rendering(
        bits=stored_bits.bits,
        shift=stored_bits.shift,
        signed=stored_bits.signed,
        inverted=element_text(dataset, "PhotometricInterpretation") == "MONOCHROME1",
        padding=(*ends, *element_numbers(dataset, "PixelPaddingRangeLimit")) if ends else (),
        modality=_table(dataset, "ModalityLUTSequence", is_little_endian),
        slope=(element_numbers(dataset, "RescaleSlope") or [1.0])[0],
        intercept=(element_numbers(dataset, "RescaleIntercept") or [0.0])[0],
        voi=_table(dataset, "VOILUTSequence", is_little_endian) or window,
    )


def _table(dataset: "Dataset", name: str, little: bool) -> Table | None:
    """Read the first lookup table of a sequence; its entries are numbers, or bytes with 8 or 16 bits an entry."""
    first = sequence_items(dataset, name)[:1]
    descriptor = element_numbers(first[0], "LUTDescriptor") if first else []
    if len(descriptor) != 3:
        return None
    size, data = int(descriptor[0]) or 65536, element_value(first[0], "LUTData")
    if isinstance(data, bytes):
        kind = "u1" if len(data) < 2 * size else "<u2" if little else ">u2"
        entries = np.frombuffer(data[: len(data) // 2 * 2], kind)[:size].astype(np.float64)
    else:
        entries = np.asarray(element_numbers(first[0], "LUTData"), np.float64)
    return Table(descriptor[1], entries) if entries.size else None
