"""Group files by dataset and kind, from the folders above them, and match masks to images by name."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from lungseg.errors import InputError
from lungseg.ingest.file_names import dataset_names, image_id, relative_path, stem
from lungseg.ingest.reason_codes import Note, reject
from lungseg.schema import Record

_IMAGES = frozenset({"images", "cxr_png"})
_MASKS = frozenset({"masks", "mask", "manualmask"})
_SIDES = frozenset({"leftmask", "rightmask"})
ONE_SIDED_MASK = Note("one_sided_mask", "only the left or the right mask exists: add the other, or remove the image")

Images = dict[str, str]
"""Name of an image (its path below its folder, without suffix) -> its uri."""

Masks = dict[str, list[str]]
"""Name of a mask, as of an image -> the uris of all files with this name."""


@dataclass
class DatasetFiles:
    """The images and masks of one dataset; masks by side, `` for files of both lungs."""

    images: Images = field(default_factory=dict)
    masks: defaultdict[str, Masks] = field(default_factory=lambda: defaultdict(dict))
    same_name_images: list[tuple[str, str]] = field(default_factory=list)

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


def group_by_dataset(folder: str, uris: Iterable[str]) -> dict[str, DatasetFiles]:
    """Group image and mask files by the root of their dataset, a path below the folder."""
    groups: defaultdict[str, DatasetFiles] = defaultdict(DatasetFiles)
    for uri in uris:
        _add_file(groups, relative_path(folder, uri), uri)
    return dict(groups)


def names_by_root(folder: str, groups: dict[str, DatasetFiles]) -> dict[str, str]:
    """Name the datasets that have images after their roots."""
    return dataset_names((root for root, files in groups.items() if files.images), folder)


def match_masks(files: DatasetFiles, dataset: str, folder: str) -> list[Record]:
    """Build a record of each image with its masks.

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
    return records


def _add_file(groups: defaultdict[str, DatasetFiles], path: str, uri: str) -> None:
    """Add one file: the names of the folders above it give its kind and its dataset."""
    *folders, name = path.split("/")
    lowered = [folder.lower() for folder in folders]
    depth = next((i for i in reversed(range(len(lowered))) if lowered[i] in _IMAGES or lowered[i] in _MASKS), None)
    if depth is None:
        groups[""].add_image(path, uri)
        return
    files, rest = groups["/".join(folders[:depth])], [*folders[depth + 1 :], name]
    if lowered[depth] in _IMAGES:
        files.add_image("/".join(rest), uri)
        return
    side = lowered[depth + 1] if lowered[depth + 1 :] and lowered[depth + 1] in _SIDES else ""
    files.add_mask("/".join(rest[1:] if side else rest), uri, side)


def _record(name: str, uri: str, files: DatasetFiles, dataset: str) -> Record:
    matches = [masks.get(name) or masks.get(f"{name}_mask") for _, masks in sorted(files.masks.items())]
    suffix = uri[len(stem(uri)) :]
    # Of several masks, take the one with the image's suffix: the others may belong to another image of this name.
    mask_uris = tuple(next((mask for mask in uris if mask.endswith(suffix)), uris[0]) for uris in matches if uris)
    record_id = image_id(name)
    classes = ("lung",) * len(mask_uris)
    record = Record(record_id, dataset, uri, mask_uris, classes, patient_id=record_id)
    if "" not in files.masks and len(mask_uris) == 1:
        return reject(record, ONE_SIDED_MASK)
    return record
