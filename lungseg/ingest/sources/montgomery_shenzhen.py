"""Shenzhen and Montgomery of the National Library of Medicine, as published and as merged on Kaggle.

Both have the finding in the name of an image, and age and sex in a text file beside the images.
"""

import logging
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from lungseg import storage
from lungseg.config.class_names import ONE_CLASS
from lungseg.errors import InputError
from lungseg.ingest.file_names import is_image, relative_path
from lungseg.ingest.reason_codes import is_unmatched_mask
from lungseg.ingest.sources.demographics import parse_clinical_reading
from lungseg.ingest.sources.mask_matching import UNMATCHED, group_by_dataset, match_and_warn, names_by_root
from lungseg.schema import Record

logger = logging.getLogger(__name__)

# CHNCXR_0001_0 is normal, CHNCXR_0401_1 is not (Jaeger et al., Quant Imaging Med Surg 2014).
_ID = re.compile(r"^(?P<set>CHNCXR|MCUCXR)_\d+_(?P<abnormal>[01])$")
_HOSPITALS = {"CHNCXR": "shenzhen", "MCUCXR": "montgomery"}
_READ_THREADS = 16  # reading a small file from a bucket is mostly waiting

Readings = dict[tuple[str, str], str]
"""(root of the dataset, name of the image) -> uri of the clinical reading."""

AgeAndSex = tuple[str | None, str | None]


def recognise(folder: str, files: Sequence[str], classes: Sequence[str] = ONE_CLASS) -> list[Record]:
    """Take the datasets that have images with the names of Shenzhen or Montgomery.

    Both in one folder become two datasets. Age and sex come from `ClinicalReadings/ID.txt`. The free text of a reading
    is not kept, because it may identify a patient.

    Raises:
        InputError: there are images and masks and no mask matches.

    """
    if not any(prefix in uri for uri in files for prefix in _HOSPITALS):
        return []
    groups = group_by_dataset(folder, (uri for uri in files if is_image(uri)), classes)
    names = names_by_root(folder, groups)
    readings = _list_readings(folder, files)
    records: list[Record] = []
    uris_by_image = {}
    for root, group in groups.items():
        if any(_ID.match(name) for name in group.images):
            matched = match_and_warn(group, names[root], storage.join(folder, root) if root else folder)
            for record in matched:
                if (root, record.image_id) in readings:
                    uris_by_image[record.image_uri] = readings[root, record.image_id]
            records += _split_hospitals(add_findings(matched))
    return _add_readings(records, uris_by_image)


def add_findings(records: list[Record]) -> list[Record]:
    """Set the finding, normal or abnormal, of records whose id has it."""
    matches = [(record, _ID.match(record.image_id)) for record in records]
    return [
        replace(record, finding=("normal", "abnormal")[int(match["abnormal"])]) if match else record
        for record, match in matches
    ]


def _split_hospitals(records: list[Record]) -> list[Record]:
    """Split a folder that merges both hospitals, as on Kaggle; cross-dataset studies need them separately."""
    hospitals = {record.image_id: _hospital(record) for record in records}
    names = sorted(
        {name for record in records if not is_unmatched_mask(record) and (name := hospitals[record.image_id])}
    )
    if len(names) < 2:
        return records
    # A mask without an image belongs to one of them, because a dataset needs images.
    others = {record.image_id: names[0] if is_unmatched_mask(record) else record.dataset for record in records}
    return [replace(record, dataset=hospitals[record.image_id] or others[record.image_id]) for record in records]


def _hospital(record: Record) -> str:
    match = _ID.match(record.image_id.removesuffix(UNMATCHED).removesuffix("_mask"))
    return _HOSPITALS[match["set"]] if match else ""


def _list_readings(folder: str, files: Sequence[str]) -> Readings:
    readings = {}
    for uri in files:
        if uri.lower().endswith(".txt"):
            *folders, name = relative_path(folder, uri).split("/")
            if folders and folders[-1].lower() == "clinicalreadings":
                readings["/".join(folders[:-1]), name[: -len(".txt")]] = uri
    return readings


def _add_readings(records: list[Record], uris_by_image: dict[str, str]) -> list[Record]:
    """Add age and sex from the readings, image_uri to reading's uri; log one warning for all unreadable ones."""
    with ThreadPoolExecutor(_READ_THREADS) as pool:
        values = dict(zip(uris_by_image, pool.map(_read, uris_by_image.values()), strict=True))
    unreadable = [uris_by_image[image] for image, value in values.items() if value is None]
    if unreadable:
        logger.warning(
            "%d of %d clinical readings cannot be read (first: %s); age and sex stay unknown: download them again",
            *(len(unreadable), len(values), unreadable[0]),
        )
    known = {image: value for image, value in values.items() if value is not None}
    unknown: AgeAndSex = (None, None)
    people = [(record, *known.get(record.image_uri, unknown)) for record in records]
    return [replace(record, age_group=age_group, sex=sex) for record, age_group, sex in people]


def _read(uri: str) -> AgeAndSex | None:
    try:
        return parse_clinical_reading(storage.read_bytes(uri).decode("utf-8", "replace"))
    except InputError:
        return None
