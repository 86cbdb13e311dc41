"""Folders of images beside folders of masks: which file belongs where, and which mask to which image."""

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

Files = dict[str, str]
"""Name of a picture (its path below its folder, without suffix) -> its uri."""

Masks = dict[str, list[str]]
"""Name of a mask, as of a picture -> the uris of all that bear it."""


@dataclass
class DatasetFiles:
    """What was found of one data set; masks by side (`` where one file holds both lungs)."""

    images: Files = field(default_factory=dict)
    masks: defaultdict[str, Masks] = field(default_factory=lambda: defaultdict(dict))
    same_name_images: list[tuple[str, str]] = field(default_factory=list)

    def add_image(self, path: str, uri: str) -> None:
        """Put an image in under its name; a second one of that name is kept too, as a double."""
        name = stem(path)
        if name in self.images:
            self.same_name_images.append((name, uri))
        else:
            self.images[name] = uri

    def add_mask(self, path: str, uri: str, side: str = "") -> None:
        """Put a mask in under its name, beside others of that name."""
        self.masks[side].setdefault(stem(path), []).append(uri)

    def mask_uris(self) -> list[str]:
        """List every mask's file."""
        return [uri for files in self.masks.values() for uris in files.values() for uri in uris]


def group_by_dataset(folder: str, pictures: Iterable[str]) -> dict[str, DatasetFiles]:
    """Put pictures where they belong, by the root of their data set (its path below the folder)."""
    found: defaultdict[str, DatasetFiles] = defaultdict(DatasetFiles)
    for uri in pictures:
        _sort_in(found, relative_path(folder, uri), uri)
    return dict(found)


def names_by_root(folder: str, found: dict[str, DatasetFiles]) -> dict[str, str]:
    """Name the data sets that hold images after their roots."""
    return dataset_names((root for root, part in found.items() if part.images), folder)


def match_masks(part: DatasetFiles, dataset: str, where: str) -> list[Record]:
    """Give each image its masks.

    Raises:
        InputError: there are images and masks, and not one mask fits.

    """
    records = [_record(name, uri, part, dataset) for name, uri in [*part.images.items(), *part.same_name_images]]
    masks = part.mask_uris()
    if masks and records and not any(record.mask_uris for record in records):
        raise InputError(f"{where}: no mask has the name of an image ({min(masks)}): name it NAME.png or NAME_mask.png")
    return records


def _sort_in(found: defaultdict[str, DatasetFiles], path: str, uri: str) -> None:
    """Put one file in: the names of the folders above it say what it is, and of which data set."""
    *folders, name = path.split("/")
    kinds = [folder.lower() for folder in folders]
    at = next((i for i in reversed(range(len(kinds))) if kinds[i] in _IMAGES or kinds[i] in _MASKS), None)
    if at is None:
        found[""].add_image(path, uri)
        return
    part, rest = found["/".join(folders[:at])], [*folders[at + 1 :], name]
    if kinds[at] in _IMAGES:
        part.add_image("/".join(rest), uri)
        return
    side = kinds[at + 1] if kinds[at + 1 :] and kinds[at + 1] in _SIDES else ""
    part.add_mask("/".join(rest[1:] if side else rest), uri, side)


def _record(name: str, uri: str, part: DatasetFiles, dataset: str) -> Record:
    fitting = [files.get(name) or files.get(f"{name}_mask") for _, files in sorted(part.masks.items())]
    suffix = uri[len(stem(uri)) :]
    # Of several, the one with the image's own suffix: the others may be those of another image of that name.
    masks = tuple(next((one for one in uris if one.endswith(suffix)), uris[0]) for uris in fitting if uris)
    own = image_id(name)
    record = Record(own, dataset, uri, masks, ("lung",) * len(masks), patient_id=own)
    if "" not in part.masks and len(masks) == 1:
        return reject(record, ONE_SIDED_MASK)
    return record
