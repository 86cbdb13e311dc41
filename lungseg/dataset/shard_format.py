"""Members of a shard: names, offsets, checksums, and decoding to a Sample."""

import zlib

from lungseg import storage
from lungseg.arrays import U8, Row
from lungseg.errors import InputError, ShardError
from lungseg.imaging import codecs
from lungseg.imaging.geometry import read_geometry
from lungseg.schema import Geometry, Sample
from lungseg.storage.json_files import JsonFields

MEMBER_SUFFIXES = {"image": "image.png", "mask": "mask.png", "json": "json"}

SAMPLE_ID_FIELDS = ("image_id", "dataset", "patient_id", "finding", "pixel_digest")
"""Fields that identify a sample and its source, in its JSON member and in its index row."""


class _SampleFields(JsonFields):
    image_id: str
    dataset: str
    patient_id: str
    finding: str | None
    pixel_digest: str
    geometry: dict[str, int]


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


def decode_sample(members: dict[str, bytes], location: str, class_count: int = 1) -> Sample:
    """Decode the members `image`, `json` and, where present, `mask` of one sample.

    class_count: with one class the mask is decoded as binary, else as class numbers. location: names the sample in
    errors.

    Raises:
        ShardError: the bytes are not a sample: the tar is damaged, or the index belongs to another tar.

    """
    try:
        meta = storage.read_json(location, members["json"], _SampleFields)
        ids = {name: meta[name] for name in SAMPLE_ID_FIELDS}
        geometry = read_geometry(meta["geometry"])
        image = codecs.decode_labels(members["image"], location)
        decode = codecs.decode_mask if class_count == 1 else codecs.decode_labels
        mask = decode(members["mask"], location) if members.get("mask") else None
        _require_size(geometry, image, mask)
    except (KeyError, InputError) as error:
        raise ShardError(
            f"{location}: not a sample at the offsets of the index ({error}): run lungseg prepare again"
        ) from None
    return Sample(**ids, geometry=geometry, image=image, mask=mask)


def _require_size(geometry: Geometry, *arrays: U8 | None) -> None:
    expected = (geometry.size, geometry.size)
    for array in arrays:
        if array is not None and array.shape != expected:
            raise InputError(f"{array.shape[0]}x{array.shape[1]} px, expected {geometry.size} px a side")
