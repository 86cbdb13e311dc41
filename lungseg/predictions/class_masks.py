"""The masks of a prediction row by class."""

from lungseg.arrays import U8, Row
from lungseg.config.class_names import LEFT_LUNG, LUNG, RIGHT_LUNG
from lungseg.errors import ImageError, InputError
from lungseg.imaging import codecs
from lungseg.imaging.lung_sides import split_sides
from lungseg.imaging.orientation import to_stored, to_upright


def class_names(row: Row) -> tuple[str, ...]:
    """Return the classes of the model that predicted a row, in their order."""
    return tuple(entry["class"] for entry in row.get("classes") or ()) or (LUNG,)


def read_class_masks(row: Row, lungs: U8 | None = None) -> dict[str, U8]:
    """Decode the mask of each class of a row, u8[H,W] in {0,1} as stored; lungs: that of both, if it is decoded.

    Raises:
        ImageError: `mask_damaged`.

    """
    if not row.get("classes"):
        return {LUNG: read_lungs(row) if lungs is None else lungs}
    return {entry["class"]: _decode(entry["mask"], row) for entry in row["classes"]}


def read_lungs(row: Row) -> U8:
    """Decode the mask of both lungs, u8[H,W] in {0,1} as stored.

    Raises:
        ImageError: `mask_damaged`, or `no_lungs`: the model has no class of the lungs.

    """
    if row["mask"] is None and row.get("classes"):
        names = ", ".join(class_names(row))
        raise ImageError("no_lungs", f"{row['image_id']} has no mask of the lungs: the model has the classes {names}")
    return _decode(row["mask"], row)


def read_sides(row: Row, orientation: int, lungs: U8 | None = None) -> dict[str, U8]:
    """Return the masks of the patient's right and left lung as stored, by class; lungs: as of `read_class_masks`.

    The model's own classes, if it has both; else the lungs are divided.

    Raises:
        ImageError: as `read_lungs`.

    """
    masks = {entry["class"]: entry["mask"] for entry in row.get("classes") or ()}
    if {RIGHT_LUNG, LEFT_LUNG} <= masks.keys():
        return {name: _decode(masks[name], row) for name in (RIGHT_LUNG, LEFT_LUNG)}
    right, left = split_sides(to_upright(read_lungs(row) if lungs is None else lungs, orientation))
    return {RIGHT_LUNG: to_stored(right, orientation), LEFT_LUNG: to_stored(left, orientation)}


def read_shown_masks(row: Row, orientation: int, lungs: U8 | None = None) -> dict[str, U8]:
    """Return the masks as stored that COCO files, DICOM segmentations and overlays have: the classes, or each lung.

    Raises:
        ImageError: as `read_lungs`.

    """
    return read_class_masks(row) if row.get("classes") else read_sides(row, orientation, lungs)


def _decode(counts: str | None, row: Row) -> U8:
    try:
        return codecs.decode_rle(counts, row["height"], row["width"])
    except InputError as error:
        raise ImageError("mask_damaged", f"the mask of {row['image_id']} cannot be decoded ({error})") from None
