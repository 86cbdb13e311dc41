"""From an archive to records. Each layout has a module with a `recognise` function, listed in SOURCES."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

from lungseg import storage
from lungseg.config.class_names import ONE_CLASS
from lungseg.errors import InputError
from lungseg.imaging.codecs import SUFFIXES
from lungseg.ingest.file_names import dataset_name, is_image, is_system_file, relative_path, stem
from lungseg.ingest.reason_codes import is_unmatched_mask
from lungseg.ingest.sources import any_folder, jsrt, montgomery_shenzhen, nnunet
from lungseg.ingest.sources.any_folder import pair_folders
from lungseg.ingest.sources.listing import Listing, keep_ids, pseudonymise_patient, read_listing
from lungseg.ingest.sources.mask_matching import DatasetFiles, group_by_dataset, other_mask, unmatched_mask
from lungseg.plurals import counted
from lungseg.schema import Record

__all__ = [
    "SOURCES",
    "Listing",
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

Source = Callable[[str, Sequence[str], Sequence[str]], list[Record]]
"""Takes an archive's folder, the files that no earlier source claimed, and the requested classes; returns the records
that it recognises.

A record claims its image_uri and its mask_uris."""

SOURCES: tuple[Source, ...] = (
    nnunet.recognise,
    jsrt.recognise,
    montgomery_shenzhen.recognise,
    any_folder.recognise,
)
"""Called in this order; the last one takes every remaining image."""


def discover(folder: str, dataset: str = "", classes: Sequence[str] = ONE_CLASS) -> list[Record]:
    """List the X-rays of an archive of any known layout, each with its masks; sorted by dataset and id.

    Known layouts, at any depth: nnU-Net and Medical Segmentation Decathlon, Shenzhen and Montgomery as published and as
    merged on Kaggle, JSRT with the SCR masks, a folder of images beside folders of masks. Images elsewhere have no
    masks. Masks of lungs that match no image, and masks of other structures, become rejected records. `dataset` names
    all records; otherwise each source does. Of several classes, folders and labels that are named after one hold its
    masks. No image is opened.

    Raises:
        InputError: the folder does not exist, has no image, or has images and masks and no mask matches.

    """
    uris = storage.list_files(folder)
    remaining: Sequence[str] = [uri for uri in uris if not is_system_file(relative_path(folder, uri))]
    system_files = len(uris) - len(remaining)
    groups = group_by_dataset(folder, (uri for uri in remaining if is_image(uri)), classes)
    other_masks = {uri for group in groups.values() for uri in group.other_masks}
    records: list[Record] = []
    for source in SOURCES:
        recognised = [
            record
            for record in source(folder, remaining, classes)
            if record.image_uri not in other_masks or is_unmatched_mask(record)
        ]
        claimed = {uri for record in recognised for uri in (record.image_uri, *record.mask_uris)}
        remaining = [uri for uri in remaining if uri not in claimed]
        records += recognised
    _log_ignored(folder, [uri for uri in remaining if uri not in other_masks], system_files)
    ignored = other_masks.intersection(remaining)
    _warn_of_other_masks(folder, sorted(ignored))
    if all(is_unmatched_mask(record) for record in records):
        raise InputError(
            f"{folder}: no image in it; expected {', '.join(SUFFIXES)} files, or images/ and masks/ folders"
        )
    records += _other_mask_records(folder, groups, ignored, records)
    records += _unclaimed_masks(folder, [uri for uri in remaining if is_image(uri) and uri not in ignored], records)
    if dataset:
        records = [replace(record, dataset=dataset) for record in records]
    return sorted(records, key=lambda record: (record.dataset, record.image_id, record.image_uri))


def _other_mask_records(
    folder: str, groups: dict[str, DatasetFiles], ignored: set[str], records: Sequence[Record]
) -> list[Record]:
    """Build a rejected record of each ignored mask, in the dataset of the images beside it, or else in the first."""
    datasets = {record.image_uri: record.dataset for record in records if not is_unmatched_mask(record)}
    first = min(datasets.values())
    advice = "its folder is named like masks of something else than lungs: name it `lung masks`, or `images` for X-rays"
    return [
        other_mask(folder, uri, next((datasets[image] for image in images if image in datasets), first), advice)
        for images, masks in ((group.images.values(), group.other_masks) for group in groups.values())
        for uri in masks
        if uri in ignored
    ]


def _unclaimed_masks(folder: str, unclaimed: Sequence[str], records: Sequence[Record]) -> list[Record]:
    """Build a rejected record of each mask that no source took, as where one took all images, but not all masks."""
    first = min(record.dataset for record in records if not is_unmatched_mask(record))
    return [unmatched_mask(stem(relative_path(folder, uri)), uri, first) for uri in unclaimed]


def _log_ignored(folder: str, remaining: Sequence[str], system_files: int) -> None:
    others = sum(not is_image(uri) for uri in remaining)
    kinds = [counted(others, "file of another type", "files of other types")] if others else []
    kinds += [counted(system_files, "system file")] if system_files else []
    if kinds:
        logger.info("%s: ignored %s", folder, " and ".join(kinds))


def _warn_of_other_masks(folder: str, ignored: Sequence[str]) -> None:
    if ignored:
        logger.warning(
            "%s: ignored %d masks that are not of lungs by the name of their folder (first: %s); if they are, name the "
            "folder `lung masks`; if they are X-rays, name it `images`",
            *(folder, len(ignored), ignored[0]),
        )
