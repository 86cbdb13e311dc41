"""The two sets of the National Library of Medicine, Shenzhen and Montgomery: as published, and as Kaggle merges them.

Both write what the radiologist found into an image's name, and age and sex into a small text beside the images.
"""

import logging
import re
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from lungseg import storage
from lungseg.errors import InputError
from lungseg.ingest.file_names import is_image, relative_path
from lungseg.ingest.sources.demographics import parse_clinical_reading
from lungseg.ingest.sources.mask_matching import group_by_dataset, match_masks, names_by_root
from lungseg.schema import Record

logger = logging.getLogger(__name__)

# CHNCXR_0001_0 is normal, CHNCXR_0401_1 is not (Jaeger et al., Quant Imaging Med Surg 2014).
_ID = re.compile(r"^(?P<set>CHNCXR|MCUCXR)_\d+_(?P<abnormal>[01])$")
_HOSPITALS = {"CHNCXR": "shenzhen", "MCUCXR": "montgomery"}
_READERS = 16  # threads; in a bucket a small file is all waiting

Readings = dict[tuple[str, str], str]
"""(root of the data set, image's name) -> uri of its clinical reading."""


def recognise(folder: str, files: Sequence[str]) -> list[Record]:
    """Take the data sets that hold images with the two sets' names, with the age and sex of `ClinicalReadings/ID.txt`.

    Shenzhen and Montgomery in one folder become two data sets. The readings' free text is not kept: it may identify.

    Raises:
        InputError: masks lie beside images and not one fits.

    """
    if not any(prefix in uri for uri in files for prefix in _HOSPITALS):
        return []
    found = group_by_dataset(folder, (uri for uri in files if is_image(uri)))
    titles = names_by_root(folder, found)
    readings = _list_readings(folder, files)
    records, texts = [], {}
    for root, part in found.items():
        if any(_ID.match(name) for name in part.images):
            own = match_masks(part, titles[root], storage.join(folder, root) if root else folder)
            texts.update({record.image_uri: readings.get((root, record.image_id), "") for record in own})
            records += _split_merged(add_findings(own))
    return _add_readings(records, {image: text for image, text in texts.items() if text})


def add_findings(records: list[Record]) -> list[Record]:
    """Set the finding, normal or abnormal, of those whose id says it."""
    found = [(record, _ID.match(record.image_id)) for record in records]
    return [
        replace(record, finding=("normal", "abnormal")[int(name["abnormal"])]) if name else record
        for record, name in found
    ]


def _split_merged(records: list[Record]) -> list[Record]:
    """Tell apart the hospitals that one folder merges, as Kaggle's does; cross-data-set studies need to."""
    hospitals = {
        record.image_uri: _HOSPITALS[name["set"]] for record in records if (name := _ID.match(record.image_id))
    }
    if len(set(hospitals.values())) < 2:
        return records
    return [replace(record, dataset=hospitals.get(record.image_uri, record.dataset)) for record in records]


def _list_readings(folder: str, files: Sequence[str]) -> Readings:
    readings = {}
    for uri in files:
        if uri.lower().endswith(".txt"):
            *above, name = relative_path(folder, uri).split("/")
            if above and above[-1].lower() == "clinicalreadings":
                readings["/".join(above[:-1]), name[: -len(".txt")]] = uri
    return readings


def _add_readings(records: list[Record], texts: dict[str, str]) -> list[Record]:
    """Add age and sex; `texts` are the readings' uris by image_uri. Those that cannot be read are warned of in sum."""
    with ThreadPoolExecutor(_READERS) as pool:
        read = dict(zip(texts, pool.map(_read, texts.values()), strict=True))
    lost = [texts[image] for image, values in read.items() if values is None]
    if lost:
        logger.warning(
            "%d of %d clinical readings cannot be read (first: %s): age and sex stay unknown: fetch them again",
            *(len(lost), len(texts), lost[0]),
        )
    known = defaultdict(lambda: (None, None), {image: values for image, values in read.items() if values})
    return [replace(record, age_group=known[record.image_uri][0], sex=known[record.image_uri][1]) for record in records]


def _read(uri: str) -> tuple[str | None, str | None] | None:
    try:
        return parse_clinical_reading(storage.read_bytes(uri).decode("utf-8", "replace"))
    except InputError:
        return None
