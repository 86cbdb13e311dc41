"""Group files by dataset and kind, from the folders above them, and match masks to images by name."""

import logging
from collections import defaultdict
from collections.abc import Iterable, Sequence, Set as AbstractSet
from dataclasses import dataclass, field

from lungseg import storage
from lungseg.config.class_names import LUNG, LUNG_SIDES, ONE_CLASS
from lungseg.errors import InputError
from lungseg.ingest.file_names import dataset_names, image_id, relative_path, stem, unnamed_patient
from lungseg.ingest.reason_codes import Note, is_unmatched_mask, reject
from lungseg.ingest.sources.folder_places import Place, find_places
from lungseg.schema import Record

logger = logging.getLogger(__name__)

ONE_SIDED_MASK = Note(
    "one_sided_mask",
    "only the left or the right mask exists, or only one of them is a requested class: add the other, or remove the "
    "image",
)

UNMATCHED = "_unmatched_mask"
"""End of the id of a mask without an image."""

Images = dict[str, str]
"""Name of an image (its path below its folder, without suffix) -> its uri."""

Masks = dict[str, list[str]]
"""Name of a mask, formed like that of an image -> the uris of all files with this name."""

_LUNG_KEYS = ("", "leftmask", "rightmask")


@dataclass
class DatasetFiles:
    """The images and masks of one dataset; masks by side, `` for files of both lungs, or by requested class.

    other_masks: files in folders of masks that are not of lungs.
    """

    images: Images = field(default_factory=dict)
    masks: defaultdict[str, Masks] = field(default_factory=lambda: defaultdict(dict))
    same_name_images: list[tuple[str, str]] = field(default_factory=list)
    other_masks: list[str] = field(default_factory=list)

    def add_image(self, path: str, uri: str) -> None:
        """Add an image; further images of one name are kept separately."""
        name = stem(path)
        if name in self.images:
            self.same_name_images.append((name, uri))
        else:
            self.images[name] = uri

    def add_mask(self, path: str, uri: str, side: str = "") -> None:
        """Add a mask beside the others of its name."""
        self.masks[side].setdefault(stem(path), []).append(uri)

    def mask_uris(self) -> list[str]:
        """List the files of all masks."""
        return [uri for masks in self.masks.values() for uris in masks.values() for uri in uris]


def group_by_dataset(folder: str, uris: Iterable[str], classes: Sequence[str] = ONE_CLASS) -> dict[str, DatasetFiles]:
    """Group image and mask files by the root of their dataset, a path below the folder; classes as in `find_places`."""
    paths = [(relative_path(folder, uri), uri) for uri in uris]
    places = find_places({path.rpartition("/")[0] for path, _ in paths}, classes)
    groups: defaultdict[str, DatasetFiles] = defaultdict(DatasetFiles)
    for path, uri in paths:
        directory, _, name = path.rpartition("/")
        place = places[directory]
        _add_file(groups[place.root], place, f"{place.path}/{name}" if place.path else name, uri)
    return dict(groups)


def names_by_root(folder: str, groups: dict[str, DatasetFiles]) -> dict[str, str]:
    """Name the datasets that have images after their roots."""
    return dataset_names((root for root, files in groups.items() if files.images), folder)


def match_and_warn(files: DatasetFiles, dataset: str, folder: str) -> list[Record]:
    """Build the records of `match_masks`, and log a warning if masks match no image.

    Raises:
        InputError: there are images and masks and no mask matches.

    """
    records = match_masks(files, dataset, folder)
    unmatched = sorted(record.image_uri for record in records if is_unmatched_mask(record))
    if unmatched:
        count = f"{len(unmatched)} of {len(files.mask_uris())}" if files.images else len(unmatched)
        logger.warning("%s: %s masks match no image (first: %s)", folder, count, unmatched[0])
    return records if dataset else []  # no images in the whole archive


def match_masks(files: DatasetFiles, dataset: str, folder: str) -> list[Record]:
    """Build a record of each image with its masks, and a rejected one of each mask that no image has.

    Raises:
        InputError: there are images and masks and no mask matches.

    """
    images = [*files.images.items(), *files.same_name_images]
    records = [_record(name, uri, files, dataset) for name, uri in images]
    masks = files.mask_uris()
    if masks and records and not any(record.mask_uris for record in records):
        raise InputError(
            f"{folder}: no mask has the name of an image ({min(masks)}): name it NAME.png or NAME_mask.png"
        )
    return [*records, *_unmatched_masks(files, records, dataset)]


def _unmatched_masks(files: DatasetFiles, records: Iterable[Record], dataset: str) -> list[Record]:
    """Build a rejected record of each mask file that is in no record, so that it is counted."""
    matched = {uri for record in records for uri in record.mask_uris}
    names = [(name, uris, uri) for masks in files.masks.values() for name, uris in masks.items() for uri in uris]
    return [unmatched_mask(name, uri, dataset, matched & {*uris}) for name, uris, uri in names if uri not in matched]


def unmatched_mask(name: str, uri: str, dataset: str, others: AbstractSet[str] = frozenset()) -> Record:
    """Build a rejected record of a mask without an image; others: masks of the same name that are used."""
    mask_id = f"{image_id(name)}{UNMATCHED}"
    problem = "matches no image: give it the name of its image, or remove it"
    if others:
        problem = f"is not used, because {storage.name_of(min(others))} has the same name: remove one of them"
    note = Note("unmatched_mask", f"mask {storage.name_of(uri)} {problem}")
    return reject(Record(mask_id, dataset, uri, patient_id=unnamed_patient(mask_id, uri)), note)


def other_mask(folder: str, uri: str, dataset: str, problem: str) -> Record:
    """Build a rejected record of a mask that is not of lungs, so that it is counted."""
    mask_id = image_id(f"{stem(relative_path(folder, uri))}_other_mask")
    note = Note("other_mask", f"{storage.name_of(uri)} is ignored: {problem}")
    return reject(Record(mask_id, dataset, uri, patient_id=unnamed_patient(mask_id, uri)), note)


def _add_file(files: DatasetFiles, place: Place, path: str, uri: str) -> None:
    if place.content == "other":
        files.other_masks.append(uri)
    elif place.content == "lungs":
        files.add_mask(path, uri, place.side)
    else:
        files.add_image(path, uri)


def _record(name: str, uri: str, files: DatasetFiles, dataset: str) -> Record:
    matches = {key: masks.get(name) or masks.get(f"{name}_mask") for key, masks in sorted(files.masks.items())}
    suffix = uri[len(stem(uri)) :].lower()
    # Of several masks, take the one with the image's suffix: the others may belong to another image of this name.
    masks = {
        key: next((mask for mask in uris if mask.lower().endswith(suffix)), uris[0])
        for key, uris in matches.items()
        if uris
    }
    record_id = image_id(name)
    classes = tuple(LUNG if key in _LUNG_KEYS else key for key in masks)
    record = Record(record_id, dataset, uri, tuple(masks.values()), classes, patient_id=unnamed_patient(record_id, uri))
    lungs = sum(key in _LUNG_KEYS for key in masks)
    is_one_sided = ("" not in files.masks and lungs == 1) or has_one_side(classes)
    return reject(record, ONE_SIDED_MASK) if is_one_sided else record


def has_one_side(classes: Sequence[str]) -> bool:
    """Return whether masks of these classes show the right or the left lung alone."""
    return LUNG not in classes and len({*LUNG_SIDES}.intersection(classes)) == 1
