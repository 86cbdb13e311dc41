"""Records checked against their files: what is read, what it is, what was repaired, and why it is rejected."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from lungseg import storage
from lungseg.config import OddMasks, PreprocessSettings
from lungseg.errors import ImageError, InputError
from lungseg.imaging import codecs
from lungseg.imaging.dicom.reader import Tags
from lungseg.ingest import image_checks, mask_checks
from lungseg.ingest.reason_codes import Note, reject, with_notes
from lungseg.schema import Record

Grey = NDArray[np.uint8] | NDArray[np.uint16]
OpenedRecord = tuple[Record, Grey | None, NDArray[np.uint8] | None]
ReadFile = Callable[[str], bytes]

_OUTLIER_Z, _OUTLIER_COUNT = 5.0, 20
_LEAST_SPREAD = 0.05  # of logits: areas that differ by a few per cent are alike, however narrow the others lie
_USUAL = PreprocessSettings()


def reject_duplicate_ids(
    records: list[Record], held: Mapping[tuple[str, str], str] = MappingProxyType({})
) -> list[Record]:
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
            message = f"{name} already has the id {record.image_id}: rename one of the files"
            record = reject(record, Note("duplicate_id", message))  # noqa: PLW2901
        checked.append(record)
    return checked


def open_record(
    record: Record,
    preprocess: PreprocessSettings = _USUAL,
    odd_masks: OddMasks = "flag",
    key: bytes | None = None,
    read: ReadFile = storage.read_bytes,
) -> OpenedRecord:
    """Read and check one record: return it completed, its image at stored depth, its mask u8[H,W] in {0..classes}.

    Problems with the files end in the record's status, codes and message; a bug is raised. Without a usable image both
    arrays are None. With a usable image and an unusable mask, the image is returned and the record is rejected.
    """
    if not record.usable:
        return record, None, None
    image = mask = None
    try:
        name = storage.name_of(record.image_uri)
        admitted = image_checks.read_image(read(record.image_uri), name, key)
        image = admitted.image
        height, width = image.shape
        record = replace(
            _with_tags(record, admitted.tags),
            height=height,
            width=width,
            pixel_digest=codecs.pixel_digest(image),
        )
        record = _noted(record, admitted.repairs, admitted.flags)
        checked = mask_checks.read_mask(record, image, preprocess, odd_masks, read)
        if checked is not None:
            mask = checked.labels
            record = _noted(replace(record, mask_area=checked.area), checked.repairs, checked.flags)
    except ImageError as error:
        record = _rejected(record, Note(error.code, error.message))
    except InputError as error:
        record = _rejected(record, Note("unreadable", str(error)))
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


def _rejected(record: Record, note: Note) -> Record:
    """Make a record unusable; the codes of repairs stay, as the image may still be predicted without its mask."""
    rejected = reject(record, note)
    return replace(
        rejected,
        codes=(*rejected.codes, *record.codes),
        message="; ".join(filter(None, [rejected.message, record.message])),
    )


def _noted(record: Record, repairs: Sequence[Note], flags: Sequence[Note]) -> Record:
    """Add repairs and flags to those that the record has."""
    status = "repaired" if repairs else record.status
    codes = (*record.flags, *(flag.code for flag in flags))
    return replace(with_notes(record, repairs), status=status, flags=codes)


def _with_tags(record: Record, tags: Tags) -> Record:
    """Take over what the file says of itself where the archive said nothing."""
    said = {field.name: getattr(tags, field.name) for field in fields(Tags)}
    # An id of an archive that names no patients is the image's own.
    known = {name: getattr(record, name) for name in said}
    if record.patient_id == record.image_id:
        known["patient_id"] = said["patient_id"] or record.patient_id
    return replace(record, **{name: said[name] if value in (None, "") else value for name, value in known.items()})
