"""Archives to Records: each layout is a function in a file of its own, named in SOURCES."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

from lungseg import storage
from lungseg.errors import InputError
from lungseg.imaging.codecs import SUFFIXES
from lungseg.ingest.file_names import dataset_name, is_image, is_system_file, relative_path
from lungseg.ingest.sources import folders, jsrt, nlm
from lungseg.ingest.sources.folders import pair_folders
from lungseg.ingest.sources.listing import keep_ids, pseudonymise_patient, read_listing
from lungseg.schema import Record

__all__ = [
    "SOURCES",
    "Record",
    "Source",
    "dataset_name",
    "discover",
    "keep_ids",
    "pair_folders",
    "pseudonymise_patient",
    "read_listing",
]

logger = logging.getLogger(__name__)

Source = Callable[[str, Sequence[str]], list[Record]]
"""An archive's folder and those of its files that no source before has claimed -> the records it recognises.

A record claims its image_uri and its mask_uris."""

SOURCES: tuple[Source, ...] = (jsrt.recognise, nlm.recognise, folders.recognise)
"""Asked in this order; the last one takes every image that is left."""


def discover(folder: str, dataset: str = "") -> list[Record]:
    """List the X-rays of an archive, whatever its layout, each with its masks where there are some.

    Known, at any depth: Shenzhen and Montgomery as published and as Kaggle merges them, JSRT with SCR's masks, `images`
    or `CXR_png` beside `masks` or `ManualMask`. Images elsewhere are images without masks. `dataset` names them all;
    else each source does. Sorted by data set and id; no image is opened.

    Raises:
        InputError: the folder is not there, holds no image, or masks lie beside images and not one fits.

    """
    listed = storage.list_files(folder)
    left: Sequence[str] = [uri for uri in listed if not is_system_file(relative_path(folder, uri))]
    litter = len(listed) - len(left)
    records: list[Record] = []
    for source in SOURCES:
        found = source(folder, left)
        claimed = {uri for record in found for uri in (record.image_uri, *record.mask_uris)}
        left = [uri for uri in left if uri not in claimed]
        records += found
    others = sum(not is_image(uri) for uri in left)
    if others or litter:
        logger.info("%s: %d files of other types passed over, and %d of operating systems", folder, others, litter)
    if not records:
        raise InputError(
            f"{folder}: no image in it; expected {', '.join(SUFFIXES)} files, or images/ and masks/ folders"
        )
    if dataset:
        records = [replace(record, dataset=dataset) for record in records]
    return sorted(records, key=lambda record: (record.dataset, record.image_id, record.image_uri))
