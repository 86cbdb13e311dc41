"""Records checked against their files: what is read, what it is, what was repaired, and why it is rejected."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lungseg import storage
from lungseg.config import OddMasks, PreprocessSettings
from lungseg.errors import ImageError, InputError
from lungseg.imaging import codecs
from lungseg.imaging.dicom.reader import Tags
from lungseg.ingest import image_checks, mask_checks
from lungseg.ingest.reason_codes import BETWEEN
from lungseg.schema import Record, Status

Grey = NDArray[np.uint8] | NDArray[np.uint16]
Opened = tuple[Record, Grey | None, NDArray[np.uint8] | None]
Read = Callable[[str], bytes]

_OUTLIER_Z, _OUTLIER_COUNT = 5.0, 20
_LEAST_SPREAD = 0.05  # of logits: areas that differ by a few per cent are alike, however narrow the others lie
_USUAL = PreprocessSettings()


def refuse_same_ids(records: list[Record], held: Mapping[tuple[str, str], str] = MappingProxyType({})) -> list[Record]:
    """Reject all but one usable record of each (dataset, image_id): ids name tar members and rows.

    The one that `held` the id before, (dataset, image_uri) to id, stays, so that a file which is added changes no older
    tar; else the first.
    """

    def holds(record: Record) -> bool:
        return held.get((record.dataset, record.image_uri)) == record.image_id

    stays: dict[tuple[str, str], int] = {}
    for number, record in enumerate(records):
        own = (record.dataset, record.image_id)
        if record.usable and (own not in stays or holds(record) > holds(records[stays[own]])):
            stays[own] = number
    checked = []
    for number, record in enumerate(records):
        if not record.usable:  # it takes no id, and has its reason
            checked.append(record)
            continue
        other = stays[record.dataset, record.image_id]
        if other != number:
            name = storage.name_of(records[other].image_uri)
            reason = f"duplicate_id: {name} has the id {record.image_id} already: rename one of them"
            record = replace(record, status="rejected", reason=reason)  # noqa: PLW2901
        checked.append(record)
    return checked


def open_record(
    record: Record,
    preprocess: PreprocessSettings = _USUAL,
    odd_masks: OddMasks = "flag",
    key: bytes | None = None,
    read: Read = storage.read_bytes,
) -> Opened:
    """Read and check one record: the completed record, its image at stored depth, its mask u8[H,W] in {0..classes}.

    Whatever is wrong with the files ends in the record's status and reason. Without a usable image both arrays are
    None; with a usable image and a mask that is not, the image is there and the record is rejected. A bug is raised.
    """
    if not record.usable:
        return record, None, None
    image = mask = None
    try:
        name = storage.name_of(record.image_uri)
        admitted = image_checks.admit(read(record.image_uri), name, key)
        image = admitted.image
        height, width = image.shape
        record = replace(
            _with_tags(record, admitted.tags),
            height=height,
            width=width,
            pixel_digest=codecs.pixel_digest(image),
            **_noted(record, admitted.repairs, admitted.flags),
        )
        checked = mask_checks.read_mask(record, image, preprocess, odd_masks, read)
        if checked is not None:
            mask = checked.labels
            record = replace(record, mask_area=checked.area, **_noted(record, checked.repairs, checked.flags))
    except ImageError as error:
        record = _lost(record, "rejected", str(error))
    except InputError as error:
        record = _lost(record, "failed", f"unreadable: {error}")
    return record, image, mask


def area_outliers(areas: Sequence[float | None]) -> list[bool]:
    """Say which shares, 0 to 1, lie far out of their own distribution: a robust z of their logits beyond 5.

    Needs twenty or more, else none. Areas within 15 % of the median are never out, however much alike the others
    are. Source: Iglewicz and Hoaglin, How to Detect and Handle Outliers, 1993, the modified z.
    """
    known = np.array([area for area in areas if area is not None], np.float64)
    if known.size < _OUTLIER_COUNT:
        return [False] * len(areas)
    shares = np.clip(known, 1e-6, 1 - 1e-6)
    logits = np.log(shares / (1 - shares))
    off = np.abs(logits - np.median(logits))
    scale = max(1.4826 * float(np.median(off)), _LEAST_SPREAD)
    out = iter(off > _OUTLIER_Z * scale)
    return [area is not None and bool(next(out)) for area in areas]


def _lost(record: Record, status: Status, why: str) -> Record:
    """Say first why a record is lost, then what had been put right in its picture, which may still be predicted."""
    return replace(record, status=status, reason=BETWEEN.join([why, *([record.reason] if record.reason else [])]))


def _noted(record: Record, repairs: tuple[str, ...], flags: tuple[str, ...]) -> dict[str, Any]:
    """Add repairs and flags to those that the record has."""
    reason = BETWEEN.join([*([record.reason] if record.reason else []), *repairs])
    status = "repaired" if repairs else record.status
    return {"status": status, "reason": reason, "flags": (*record.flags, *flags)}


def _with_tags(record: Record, tags: Tags) -> Record:
    """Take over what the file says of itself where the archive said nothing."""
    said = {field.name: getattr(tags, field.name) for field in fields(Tags)}
    # An id of an archive that names no patients is the image's own.
    known = {name: getattr(record, name) for name in said}
    if record.patient_id == record.image_id:
        known["patient_id"] = said["patient_id"] or record.patient_id
    return replace(record, **{name: said[name] if value in (None, "") else value for name, value in known.items()})
