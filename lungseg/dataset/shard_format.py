"""The members of a tar, their checksums, and how they become a sample."""

import json
import zlib

from lungseg.arrays import Row
from lungseg.errors import InputError, ShardError
from lungseg.imaging import codecs
from lungseg.schema import Geometry, Sample, check_schema

MEMBER_SUFFIXES = {"image": "image.png", "mask": "mask.png", "json": "json"}


def decode_sample(members: dict[str, bytes], where: str, classes: int = 1) -> Sample:
    """Decode one sample's members (`image`, `json`, and `mask` where there is one), read from the tar `where`.

    Raises:
        ShardError: the bytes are not those of a sample: the tar is damaged, or its index belongs to another.

    """
    try:
        meta = json.loads(members["json"])
        check_schema(meta["schema"], where)
        ids = {name: meta[name] for name in SAMPLE_ID_FIELDS}
        geometry = Geometry(**meta["geometry"])
        image = codecs.decode(members["image"], where)
        decode = codecs.decode_mask if classes == 1 else codecs.decode_labels
        mask = decode(members["mask"], where) if members.get("mask") else None
    except (ValueError, KeyError, TypeError, InputError) as error:
        raise ShardError(f"{where}: not a sample where the index says ({error}): run jobs/prepare.py again") from None
    return Sample(**ids, geometry=geometry, image=image.astype("uint8"), mask=mask)


def member_ranges(row: Row) -> dict[str, tuple[int, int]]:
    """Say where an index row's members lie: name to (offset, size), bytes."""
    return {name: (row[f"{name}_offset"], row[f"{name}_size"]) for name in MEMBER_SUFFIXES if row[f"{name}_size"]}


def verify_checksums(row: Row, members: dict[str, bytes], where: str) -> None:
    """Compare the bytes that were read with the index row's checksums.

    Raises:
        ShardError: they differ: the tar `where` is damaged, or the index is of another.

    """
    for name, content in members.items():
        if zlib.crc32(content) != row[f"{name}_crc32"]:
            raise ShardError(
                f"{where}: the {name} of {row['image_id']} is damaged (checksum): run jobs/prepare.py again"
            )


SAMPLE_ID_FIELDS = ("image_id", "dataset", "patient_id", "finding", "pixel_digest")
"""What a sample's JSON says of where it comes from."""
