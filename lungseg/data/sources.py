"""A data set's folder to Records. Which layout it is, is seen from its folders' names."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import PurePosixPath

from lungseg import storage
from lungseg.data.images import SUFFIXES
from lungseg.errors import InputError
from lungseg.schema import Record

_UNSAFE = re.compile(r"[^A-Za-z0-9_-]+")
# The two NLM sets write the radiologist's finding into the name: CHNCXR_0001_0 is normal, CHNCXR_0401_1 is not.
_NLM = re.compile(r"^(?P<set>CHNCXR|MCUCXR)_\d+_(?P<abnormal>[01])$")
_NLM_SETS = {"CHNCXR": "shenzhen", "MCUCXR": "montgomery"}

Layout = Callable[[str], list[Record]]


def discover(folder: str, dataset: str = "") -> list[Record]:
    """List the X-rays of an archive, whatever its layout, each with its masks where there are some.

    Known: Montgomery as published (`CXR_png`, `ManualMask/leftMask` and `rightMask`), Kaggle's merged folder (`CXR_png`
    or `images`, and `masks`), `images/` and `masks/`, a folder whose subfolders are such data sets, and a plain folder
    of images without masks. Sorted by data set and id; nothing is opened.

    Raises:
        InputError: the folder is not there, or holds no image.

    """
    records = _of_one(folder, dataset)
    if records is None:
        parts = [found for child in storage.list_folders(folder) if (found := _of_one(child, dataset))]
        records = [record for part in parts for record in part] or pair(folder, "", dataset or _name(folder))
    if not records:
        raise InputError(
            f"{folder}: no image in it; expected {', '.join(SUFFIXES)} files, or images/ and masks/ folders"
        )
    return sorted(records, key=lambda record: (record.dataset, record.image_id, record.image_uri))


def pair(images: str, masks: str, dataset: str) -> list[Record]:
    """List any folder of images with any folder of masks; a mask has its image's path, an ending _mask may follow.

    Raises:
        InputError: a folder is not there, or masks were given and not one of them fits an image.

    """
    by_id = _masks_by_id(masks) if masks else {}
    records = [
        Record(image_id, dataset, uri, by_id.get(image_id, ()), patient_id=image_id) for image_id, uri in _by_id(images)
    ]
    if masks and records and not any(record.mask_uris for record in records):
        raise InputError(f"{masks}: no mask has the name of an image in {images}: name it NAME.png or NAME_mask.png")
    return [_with_nlm_names(record) for record in records]


def _of_one(folder: str, dataset: str) -> list[Record] | None:
    """Read a folder as one data set of a known layout; None where it is none."""
    children = {storage.name_of(child) for child in storage.list_folders(folder)}
    images = next((name for name in ("CXR_png", "images") if name in children), None)
    if images is None:
        return None
    name = dataset or _name(folder)
    if "ManualMask" in children:
        return _montgomery(folder, images, name)
    masks = storage.join(folder, "masks") if "masks" in children else ""
    records = pair(storage.join(folder, images), masks, name)
    # Kaggle's folder merges two hospitals, which cross-data-set studies must tell apart.
    merged = {_NLM_SETS[found["set"]] for record in records if (found := _NLM.match(record.image_id))}
    return [_split_by_name(record) for record in records] if len(merged) > 1 and not dataset else records


def _montgomery(folder: str, images: str, dataset: str) -> list[Record]:
    """Join each image with its left and right mask; one that lacks a side keeps the other and is told by the check."""
    left, right = (_masks_by_id(storage.join(folder, "ManualMask", side)) for side in ("leftMask", "rightMask"))
    records = [
        Record(image_id, dataset, uri, left.get(image_id, ()) + right.get(image_id, ()), patient_id=image_id)
        for image_id, uri in _by_id(storage.join(folder, images))
    ]
    return [
        replace(record, status="rejected", reason="one_sided_mask: only the left or the right mask is there")
        if len(record.mask_uris) == 1
        else _with_nlm_names(record)
        for record in records
    ]


def _by_id(folder: str) -> list[tuple[str, str]]:
    return [(_image_id(folder, uri), uri) for uri in storage.list_files(folder, SUFFIXES)]


def _masks_by_id(folder: str) -> dict[str, tuple[str, ...]]:
    return {image_id.removesuffix("_mask"): (uri,) for image_id, uri in _by_id(folder)}


def _image_id(folder: str, uri: str) -> str:
    """Make an id of a file's path below its folder, of letters that are safe in tar members and file names."""
    relative = PurePosixPath(uri[len(folder) :].lstrip("/"))
    return _UNSAFE.sub("_", str(relative.with_suffix("")))


def _with_nlm_names(record: Record) -> Record:
    found = _NLM.match(record.image_id)
    return replace(record, finding=("normal", "abnormal")[int(found["abnormal"])]) if found else record


def _split_by_name(record: Record) -> Record:
    found = _NLM.match(record.image_id)
    return replace(record, dataset=_NLM_SETS[found["set"]]) if found else record


def _name(folder: str) -> str:
    return _UNSAFE.sub("_", storage.name_of(folder)).lower() or "archive"
