"""Compare what the attributes of the pixels state with the pixels: size, length and bits of a cell."""

from typing import TYPE_CHECKING, NamedTuple

from lungseg.errors import ImageError
from lungseg.imaging.dicom.codestream import FrameHeader, read_frame_header
from lungseg.imaging.dicom.stored_bits import StoredBits
from lungseg.imaging.dicom.tags import Repair, element_int, element_value

if TYPE_CHECKING:
    from pydicom.dataset import FileDataset

TAGS = {
    "SamplesPerPixel": "0028,0002",
    "PhotometricInterpretation": "0028,0004",
    "PlanarConfiguration": "0028,0006",
    "Rows": "0028,0010",
    "Columns": "0028,0011",
    "BitsAllocated": "0028,0100",
    "BitsStored": "0028,0101",
    "HighBit": "0028,0102",
    "PixelRepresentation": "0028,0103",
}
"""Attributes of the pixels that every image needs (PlanarConfiguration: in colour only), with group and element."""


class Statement(NamedTuple):
    """What the attributes of a file state about its cells: their size in bits, and which of them hold the picture."""

    allocated: int
    stored: StoredBits


def read_statement(dataset: "FileDataset") -> Statement:
    """Read the statement of the attributes; an impossible HighBit is ignored."""
    allocated, bits = element_int(dataset, "BitsAllocated"), element_int(dataset, "BitsStored")
    high = element_int(dataset, "HighBit", bits - 1)
    can_shift = not dataset.file_meta.TransferSyntaxUID.is_encapsulated and bits <= high + 1 <= allocated
    signed = element_int(dataset, "PixelRepresentation") == 1
    return Statement(allocated, StoredBits(bits, high + 1 - bits if can_shift else 0, signed))


def fit_to_stream(dataset: "FileDataset", display_name: str) -> None:
    """Set BitsAllocated to 16 if the stream has more than 8 bits; refuse pixels of another size than stated.

    Raises:
        ImageError: `pixel_attributes`, the stream or the length of the pixels contradicts rows, columns or bits.

    """
    header, length = frame_header(dataset), plain_length(dataset)
    rows, columns = element_int(dataset, "Rows"), element_int(dataset, "Columns")
    allocated = element_int(dataset, "BitsAllocated")
    frame = rows * columns * element_int(dataset, "SamplesPerPixel", 1) * allocated // 8
    is_one_frame = element_int(dataset, "NumberOfFrames", 1) == 1
    problem = ""
    if header is not None and header.height and (header.height, header.width) != (rows, columns):
        problem = f"its stream has {header.height}x{header.width} px"
    elif is_one_frame and allocated in (8, 16) and _has_more_pixels(dataset, frame):
        problem = f"it holds {length} bytes of pixels instead of {frame}"
    if problem:
        raise ImageError(
            "pixel_attributes",
            f"{display_name} states {rows}x{columns} px with {allocated} bits, but {problem}: export it again",
        )
    if header is not None and allocated == 8 < header.precision <= 16:
        dataset.BitsAllocated = 16


def _has_more_pixels(dataset: "FileDataset", frame: int) -> bool:
    """Return whether plain pixels are longer than the frame by more than padding: zeros of less than a row or column.

    frame: bytes that the attributes state.
    """
    rows, columns = element_int(dataset, "Rows"), element_int(dataset, "Columns")
    length = plain_length(dataset)
    if length is None or frame <= 0 or length - frame <= 1:
        return False
    return length - frame >= frame // max(rows, columns) or any(dataset.PixelData[frame:])


def describe_repairs(
    dataset: "FileDataset", stated: Statement, assumed: tuple[str, ...], display_name: str
) -> tuple[Repair, ...]:
    """Describe which attributes were assumed, and which ones the pixels contradicted."""
    used = read_statement(dataset)
    repairs: tuple[Repair, ...] = ()
    if assumed:
        values = ", ".join(f"{name} ({TAGS[name]}) = {element_value(dataset, name)}" for name in assumed)
        repairs += (Repair("attribute_assumed", f"{display_name} lacks attributes of its pixels; assumed: {values}"),)
    before, after = _by_name(stated), _by_name(used)
    wrong = [name for name in after if after[name] != before[name] and name not in assumed]
    if wrong:
        values = ", ".join(f"{name} ({TAGS[name]}) = {after[name]}, stated {before[name]}" for name in wrong)
        repairs += (Repair("stored_bits", f"{display_name} has pixels that contradict its header; used: {values}"),)
    return repairs


def frame_header(dataset: "FileDataset") -> FrameHeader | None:
    """Read what the compressed stream of the first frame states; None if the pixels are not compressed, or by RLE."""
    from pydicom.encaps import generate_frames

    if not dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        return None
    try:
        return read_frame_header(next(generate_frames(dataset.PixelData, number_of_frames=1)))
    except (ValueError, StopIteration):
        return None


def plain_length(dataset: "FileDataset") -> int | None:
    """Return the bytes of the pixels; None if they are compressed."""
    encapsulated = dataset.file_meta.TransferSyntaxUID.is_encapsulated
    return None if encapsulated else len(element_value(dataset, "PixelData") or b"")


def _by_name(statement: Statement) -> dict[str, int]:
    bits, shift, signed = statement.stored
    return {
        "BitsAllocated": statement.allocated,
        "BitsStored": bits,
        "HighBit": bits + shift - 1,
        "PixelRepresentation": int(signed),
    }
