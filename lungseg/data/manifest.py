"""Records checked against their files: what is read, what it is, and why it is rejected."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from lungseg import storage
from lungseg.data import images
from lungseg.errors import ImageError, InputError
from lungseg.schema import Record

Grey = NDArray[np.uint8] | NDArray[np.uint16]
_MIN_SIDE = 32  # px; a smaller picture is a thumbnail or an icon


def refuse_same_ids(records: list[Record]) -> list[Record]:
    """Reject all but the first record of each (dataset, image_id): ids name tar members and rows."""
    seen: dict[tuple[str, str], str] = {}
    checked = []
    for record in records:
        first = seen.setdefault((record.dataset, record.image_id), record.image_uri)
        reason = f"duplicate_id: {storage.name_of(first)} has the id {record.image_id} already: rename one of them"
        checked.append(record if first == record.image_uri else replace(record, status="rejected", reason=reason))
    return checked


def open_record(record: Record) -> tuple[Record, Grey | None, NDArray[np.uint8] | None]:
    """Read and check one record: the completed record, its image at stored depth, its mask u8[H,W] in {0,1}.

    Whatever is wrong with the files ends in the record's status and reason. Without a usable image both arrays are
    None; with a usable image and a mask that is not, the image is there and the record is rejected. A bug is raised.
    """
    if record.status != "ok":
        return record, None, None
    image = mask = None
    try:
        image = _checked_image(record)
        height, width = image.shape
        record = replace(record, height=height, width=width, sha256=images.pixel_digest(image))
        mask = _joined_mask(record, image.shape) if record.mask_uris else None
    except ImageError as error:
        record = replace(record, status="rejected", reason=str(error))
    except InputError as error:
        record = replace(record, status="failed", reason=f"unreadable: {error}")
    return record, image, mask


def summarise(records: Iterable[Record]) -> dict[str, int]:
    """Count records by status, and by reason code where there is one."""
    counts = Counter(
        record.status if not record.reason else f"{record.status} {record.reason.split(':')[0]}" for record in records
    )
    return dict(sorted(counts.items()))


def _checked_image(record: Record) -> Grey:
    name = storage.name_of(record.image_uri)
    image = images.decode(storage.read_bytes(record.image_uri), name)
    height, width = image.shape
    if min(height, width) < _MIN_SIDE:
        raise ImageError("too_small", f"{name} is {height}x{width} px, expected {_MIN_SIDE} or more a side")
    if image.min() == image.max():
        raise ImageError("blank", f"{name} holds the one grey value {int(image.min())}: export it again")
    return image


def _joined_mask(record: Record, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    joined = np.zeros(shape, np.uint8)
    for uri in record.mask_uris:
        name = storage.name_of(uri)
        mask = images.decode_mask(storage.read_bytes(uri), f"mask {name}")
        if mask.shape != shape:
            found, expected = (f"{height}x{width}" for height, width in (mask.shape, shape))
            raise ImageError(
                "mask_size",
                f"mask {name} is {found}, its image is {expected} ({record.image_id}): export the mask again",
            )
        joined |= mask
    if not joined.any():
        raise ImageError("mask_empty", f"the mask of {record.image_id} marks no pixel: draw it, or take the image out")
    if joined.all():
        raise ImageError(
            "mask_full", f"the mask of {record.image_id} marks every pixel: draw it, or take the image out"
        )
    return joined
