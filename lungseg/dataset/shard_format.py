"""Members of a shard: names, offsets, checksums, and decoding to a Sample."""

import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from pydantic import Field

from lungseg import storage
from lungseg.arrays import U8, Row
from lungseg.config.class_names import LUNG, LUNG_SIDES, ONE_CLASS
from lungseg.errors import InputError, ShardError
from lungseg.imaging import codecs
from lungseg.imaging.geometry import read_geometry
from lungseg.schema import NOT_ANNOTATED, Geometry, Sample, is_annotated
from lungseg.storage.json_files import JsonFields

MEMBER_SUFFIXES = {"image": "image.png", "mask": "mask.png", "json": "json"}

SAMPLE_ID_FIELDS = ("image_id", "dataset", "patient_id", "finding", "pixel_digest")
"""Fields that identify a sample and its source, in its JSON member and in its index row."""


class Classes(NamedTuple):
    """Classes of the masks of a sample: as they are stored, and as a reader wants them.

    A wanted class that is not stored is not annotated. Lungs are joined from both lungs where only these are stored.
    """

    stored: tuple[str, ...] = ONE_CLASS
    wanted: tuple[str, ...] = ONE_CLASS


_LUNGS_ONLY = Classes()


class _SampleFields(JsonFields):
    image_id: str
    dataset: str
    patient_id: str
    finding: str | None
    pixel_digest: str
    geometry: dict[str, int]
    classes: list[str] = Field(default_factory=list)
    annotated: list[str] = Field(default_factory=list)


def member_ranges(row: Row) -> dict[str, tuple[int, int]]:
    """Return the byte ranges (offset, size) of an index row's members; a sample without a mask has no `mask`."""
    return {name: (row[f"{name}_offset"], row[f"{name}_size"]) for name in MEMBER_SUFFIXES if row[f"{name}_size"]}


def verify_checksums(row: Row, members: dict[str, bytes], location: str) -> None:
    """Compare the CRC-32 of each member with the index row.

    location: names the sample in errors.

    Raises:
        ShardError: a checksum differs: the tar is damaged, or the index belongs to another tar.

    """
    for name, content in members.items():
        if zlib.crc32(content) != row[f"{name}_crc32"]:
            raise ShardError(f"{location}: the {name} is damaged (wrong checksum): run lungseg prepare again")


def class_fields(masks: U8, classes: Sequence[str]) -> Row:
    """Return the fields of the JSON member that describe masks u8[K,S,S] of several classes; none for one class."""
    if len(classes) == 1:
        return {}
    annotated = [name for name, mask in zip(classes, masks, strict=True) if is_annotated(mask)]
    return {"classes": list(classes), "annotated": annotated}


def masks_of(sample: Sample, classes: int) -> U8:
    """Return the masks u8[K,S,S] of a sample of K classes, NOT_ANNOTATED everywhere if it has none."""
    return np.full((classes, *sample.image.shape), NOT_ANNOTATED, np.uint8) if sample.masks is None else sample.masks


def encode_masks(masks: U8) -> bytes:
    """Encode masks u8[K,S,S] as a 1-bit PNG with one above the other, in their order; not annotated ones are black."""
    return codecs.encode_mask((masks == 1).astype(np.uint8).reshape(-1, masks.shape[2]))


def decode_sample(members: dict[str, bytes], location: str, classes: Classes = _LUNGS_ONLY) -> Sample:
    """Decode the members `image`, `json` and, where present, `mask` of one sample.

    classes: of its masks; a sample of several classes names those that it stores. location: names the sample in errors.
    The masks are None if no wanted class is annotated.

    Raises:
        ShardError: the bytes are not a sample: the tar is damaged, or the index belongs to another tar.

    """
    try:
        meta = storage.read_json(location, members["json"], _SampleFields)
        ids = {name: meta[name] for name in SAMPLE_ID_FIELDS}
        geometry = read_geometry(meta["geometry"])
        image = codecs.decode_labels(members["image"], location)
        _require_size(geometry, image)
        masks = _decode_masks(members["mask"], meta, location, classes) if members.get("mask") else None
        if masks is not None:
            _require_size(geometry, *masks)
    except (KeyError, InputError) as error:
        raise ShardError(
            f"{location}: not a sample at the offsets of the index ({error}): run lungseg prepare again"
        ) from None
    return Sample(**ids, geometry=geometry, image=image, masks=masks)


def _decode_masks(content: bytes, meta: Row, location: str, classes: Classes) -> U8 | None:
    """Decode the mask member to the wanted classes, u8[K,S,S]; None if none of them is annotated.

    Raises:
        InputError: the member cannot be decoded, or is not as high as its classes need.

    """
    stored = meta.get("classes") or []
    if not stored:  # one class, which the sample does not name
        return _select(codecs.decode_mask(content, location)[None], classes.stored, classes.wanted)
    stack = codecs.decode_labels(content, location)
    if stack.shape[0] % len(stored):
        raise InputError(f"a mask of {stack.shape[0]} px for {len(stored)} classes")
    masks = (stack.reshape(len(stored), -1, stack.shape[1]) > 0).astype(np.uint8)
    masks[[name not in meta["annotated"] for name in stored]] = NOT_ANNOTATED
    return _select(masks, stored, classes.wanted)


def _select(masks: U8, stored: Sequence[str], wanted: Sequence[str]) -> U8 | None:
    if tuple(stored) == tuple(wanted):
        return masks
    by_class = dict(zip(stored, masks, strict=True))
    sides = [by_class[name] for name in LUNG_SIDES if name in by_class and is_annotated(by_class[name])]
    if LUNG not in by_class and len(sides) == len(LUNG_SIDES):
        by_class[LUNG] = sides[0] | sides[1]
    unknown = np.full(masks.shape[1:], NOT_ANNOTATED, np.uint8)
    selected = np.stack([by_class.get(name, unknown) for name in wanted])
    return selected if any(map(is_annotated, selected)) else None


def _require_size(geometry: Geometry, *arrays: U8) -> None:
    expected = (geometry.size, geometry.size)
    for array in arrays:
        if array.shape != expected:
            raise InputError(f"{array.shape[0]}x{array.shape[1]} px, expected {geometry.size} px a side")
