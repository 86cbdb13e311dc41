"""Check records against their files: read the image and masks, complete the record, and reject it if necessary."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from types import MappingProxyType

import numpy as np

from lungseg import storage
from lungseg.arrays import U8, Grey
from lungseg.config import OddMasks, PreprocessSettings
from lungseg.config.class_names import LUNGS, ONE_CLASS, annotated_by
from lungseg.errors import ImageError, InputError
from lungseg.imaging import codecs
from lungseg.imaging.dicom.reader import is_dicom
from lungseg.imaging.dicom.tags import Tags, refuse_view
from lungseg.imaging.orientation import other_shape
from lungseg.ingest import image_checks, mask_checks
from lungseg.ingest.reason_codes import Note, reject, with_notes
from lungseg.ingest.views import classify_listed_view
from lungseg.schema import Record

OpenedRecord = tuple[Record, Grey | None, U8 | None]
ReadFile = Callable[[str], bytes]

_OUTLIER_Z, _MIN_OUTLIER_COUNT = 5.0, 20
_MIN_SPREAD = 0.05  # of logits: areas that differ by a few per cent are no outliers, however alike the others are
_DEFAULT = PreprocessSettings()
_NOT_STORED = ("flags", "repairs")  # of Tags: they become notes


def reject_duplicate_ids(
    records: list[Record], earlier_ids: Mapping[tuple[str, str], str] = MappingProxyType({})
) -> list[Record]:
    """Reject all but one usable record of each (dataset, image_id), which names tar members and rows.

    earlier_ids: (dataset, image_uri) to the id in an earlier plan. The record that had the id before is kept, so that
    an added file does not change older tars; otherwise the first one.
    """

    def had_id(record: Record) -> bool:
        return earlier_ids.get((record.dataset, record.image_uri)) == record.image_id

    kept: dict[tuple[str, str], int] = {}
    for number, record in enumerate(records):
        key = (record.dataset, record.image_id)
        if record.usable and (key not in kept or had_id(record) > had_id(records[kept[key]])):
            kept[key] = number
    checked = []
    for number, record in enumerate(records):
        # A record that is not usable takes no id, and keeps the reason that it has.
        other = kept[record.dataset, record.image_id] if record.usable else number
        if other == number:
            checked.append(record)
            continue
        name = storage.name_of(records[other].image_uri)
        message = f"{name} already has the id {record.image_id}: rename one of the files"
        checked.append(reject(record, Note("duplicate_id", message)))
    return checked


def flag_missing_masks(records: Iterable[Record], classes: Sequence[str] = ONE_CLASS) -> Iterator[Record]:
    """Flag the usable images that lack a mask of the requested classes which others of their dataset have.

    records: iterated over twice, so not a generator.
    """
    annotated: dict[str, set[str]] = {}
    for record in records:
        if record.usable:
            annotated.setdefault(record.dataset, set()).update(annotated_by(record.mask_classes, classes))
    for record in records:
        own = {*annotated_by(record.mask_classes, classes)}
        if record.usable and own != annotated[record.dataset]:
            note = Note("missing_class" if own else "no_mask")
            yield replace(record, flags=tuple(dict.fromkeys((*record.flags, note.code))))
        else:
            yield record


def open_record(
    record: Record,
    preprocess: PreprocessSettings = _DEFAULT,
    odd_masks: OddMasks = "flag",
    key: bytes | None = None,
    read: ReadFile = storage.read_bytes,
) -> OpenedRecord:
    """Read and check one record: return it completed, its image at stored depth, and its masks u8[K,H,W].

    Masks are of the requested classes, as in `CheckedMask`. Image and masks are upright; the record's height and width
    are those of the stored pixels.

    Problems with the files set the record's status, codes and message; only bugs are raised. Without a usable image
    both arrays are None. With a usable image and an unusable mask, the image is returned and the record is rejected.
    """
    if not record.usable:
        return record, None, None
    image = mask = None
    try:
        name = storage.name_of(record.image_uri)
        record = _with_findings(record, (), _check_listed_view(record, name))
        content = read(record.image_uri)
        if is_dicom(content) and record.patient_id == record.image_id:  # DICOM with the file name of another format
            record = replace(record, patient_id="")
        checked_image = image_checks.read_image(content, name, key)
        image = checked_image.image
        orientation = checked_image.tags.orientation
        height, width = other_shape(image.shape, orientation)
        record = replace(
            _with_tags(record, checked_image.tags),
            height=height,
            width=width,
            orientation=orientation,
            pixel_digest=codecs.pixel_digest(image),
        )
        record = _with_findings(record, checked_image.repairs, checked_image.flags)
        checked_mask = mask_checks.read_mask(record, image, preprocess, odd_masks, read)
        if checked_mask is not None:
            mask = checked_mask.masks
            record = replace(record, mask_area=checked_mask.area)
            record = _with_findings(record, checked_mask.repairs, checked_mask.flags)
    except ImageError as error:
        record = _rejected(record, Note(error.code, error.message))
    except InputError as error:
        record = _rejected(record, Note("unreadable", str(error)))
    return record, image, mask


def open_with_usable_masks(
    record: Record, preprocess: PreprocessSettings, key: bytes | None = None, read: ReadFile = storage.read_bytes
) -> OpenedRecord:
    """Open a record as `open_record`, but of several classes leave out only those whose masks cannot be used.

    The record is rejected, as by `open_record`, with the codes of the masks that are left out. All masks of lungs are
    used together or not at all.
    """
    first, image, masks = open_record(record, preprocess, key=key, read=read)
    requested = [kind for kind in record.mask_classes if annotated_by((kind,), preprocess.classes)]
    groups = dict.fromkeys(LUNGS if kind in LUNGS else (kind,) for kind in requested)
    if first.usable or image is None or len(groups) < 2:
        return first, image, masks
    left_out: dict[tuple[str, ...], Note] = {}
    for group in groups:
        try:
            mask_checks.read_mask(_without(first, groups.keys() - {group}), image, preprocess, "flag", read)
        except ImageError as error:
            left_out[group] = Note(error.code, error.message)
        except InputError as error:
            left_out[group] = Note("unreadable", str(error))
    if not left_out or len(left_out) == len(groups):
        return first, image, masks
    checked = mask_checks.read_mask(_without(first, left_out), image, preprocess, "flag", read)
    assert checked is not None, "a group of masks is usable"
    names = sorted({kind for group in left_out for kind in group if kind in requested})
    others = [note for note in left_out.values() if note.code != first.codes[0]]
    message = f"{first.message}; not compared: {', '.join(names)}"
    noted = with_notes(replace(first, mask_area=checked.area, message=message), others)
    return replace(_with_findings(noted, checked.repairs, checked.flags), status=first.status), image, checked.masks


def _without(record: Record, groups: Collection[tuple[str, ...]]) -> Record:
    """Return a record without its masks of these groups of classes."""
    kinds = {kind for group in groups for kind in group}
    kept = [number for number, kind in enumerate(record.mask_classes) if kind not in kinds]
    return replace(
        record,
        mask_uris=tuple(record.mask_uris[number] for number in kept),
        mask_classes=tuple(record.mask_classes[number] for number in kept),
        mask_values=tuple(record.mask_values[number] for number in kept) if record.mask_values else (),
    )


def area_outliers(areas: Sequence[float | None]) -> list[bool]:
    """Find outliers among areas, shares from 0 to 1: a robust z-score of the logit above 5.

    With fewer than 20 areas there are none. Areas within 15 % of the median are no outliers, however alike the others
    are. Source: Iglewicz and Hoaglin, How to Detect and Handle Outliers, 1993, the modified z-score.
    """
    known = np.array([area for area in areas if area is not None], np.float64)
    if known.size < _MIN_OUTLIER_COUNT:
        return [False] * len(areas)
    shares = np.clip(known, 1e-6, 1 - 1e-6)
    logits = np.log(shares / (1 - shares))
    deviations = np.abs(logits - np.median(logits))
    scale = max(1.4826 * float(np.median(deviations)), _MIN_SPREAD)
    is_outlier = iter(deviations > _OUTLIER_Z * scale)
    return [area is not None and bool(next(is_outlier)) for area in areas]


def _check_listed_view(record: Record, name: str) -> tuple[Note, ...]:
    """Flag a view of the archive that is unknown; a manifest has it even where the listing is not at hand.

    Raises:
        ImageError: `lateral_view` or `oblique_view`.

    """
    view = classify_listed_view(record.view or "")
    refuse_view(view, f"{name} (according to its listing)")
    return (Note("view_unknown"),) if view == "unknown" else ()


def _rejected(record: Record, note: Note) -> Record:
    """Reject a record and keep the codes of its repairs, as the image may still be predicted without its mask."""
    rejected = reject(record, note)
    return replace(
        rejected,
        codes=(*rejected.codes, *record.codes),
        message="; ".join(filter(None, [rejected.message, record.message])),
    )


def _with_findings(record: Record, repairs: Sequence[Note], flags: Sequence[Note]) -> Record:
    """Append repairs and flags to those of a record."""
    status = "repaired" if repairs else record.status
    codes = tuple(dict.fromkeys((*record.flags, *(flag.code for flag in flags))))
    return replace(with_notes(record, repairs), status=status, flags=codes)


def _with_tags(record: Record, tags: Tags) -> Record:
    """Fill fields that the archive left empty from the tags of the file."""
    from_file = {field.name: getattr(tags, field.name) for field in fields(Tags) if field.name not in _NOT_STORED}
    known = {name: getattr(record, name) for name in from_file}
    filled = {name: from_file[name] if value in (None, "") else value for name, value in known.items()}
    return replace(record, **filled)
