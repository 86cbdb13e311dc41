"""A data set's folder to Records. Which layout it is, is seen from its folders' names."""

import hashlib
import logging
import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from urllib.parse import unquote

from lungseg import storage
from lungseg.data.images import SUFFIXES
from lungseg.errors import InputError
from lungseg.schema import Record

logger = logging.getLogger(__name__)

_IMAGES = ("images", "cxr_png")
_MASKS = ("masks", "mask", "manualmask")
_SIDES = ("leftmask", "rightmask")
_UNSAFE = re.compile(r"[^A-Za-z0-9_-]+")
# The two NLM sets write the radiologist's finding into the name: CHNCXR_0001_0 is normal, CHNCXR_0401_1 is not.
_NLM = re.compile(r"^(?P<set>CHNCXR|MCUCXR)_\d+_(?P<abnormal>[01])$")
_NLM_SETS = {"CHNCXR": "shenzhen", "MCUCXR": "montgomery"}

Files = dict[str, str]
"""Name of a picture (its path below its folder, without suffix) -> its uri."""


@dataclass
class _DataSet:
    """What was found of one data set; masks by side (`` where one file holds both lungs)."""

    images: Files = field(default_factory=dict)
    masks: defaultdict[str, Files] = field(default_factory=lambda: defaultdict(dict))
    doubles: list[tuple[str, str]] = field(default_factory=list)
    spare: list[str] = field(default_factory=list)


def discover(folder: str, dataset: str = "") -> list[Record]:
    """List the X-rays of an archive, whatever its layout, each with its masks where there are some.

    Known, at any depth: `images` or `CXR_png` beside `masks` (cxr256, Kaggle's merged folder) or beside `ManualMask`
    with `leftMask` and `rightMask` (Montgomery as published). Images elsewhere are images without masks. Sorted by data
    set and id; nothing is opened.

    Raises:
        InputError: the folder is not there, holds no image, or masks lie beside images and not one fits.

    """
    found: defaultdict[str, _DataSet] = defaultdict(_DataSet)
    files = storage.list_files(folder)
    pictures = [uri for uri in files if uri.lower().endswith(SUFFIXES)]
    for uri in pictures:
        _sort_in(found, folder, uri)
    names = _names(folder, [root for root, part in found.items() if part.images])
    records = [
        record
        for root, part in found.items()
        for record in _join(part, dataset or names.get(root, ""), storage.join(folder, root) if root else folder)
    ]
    if len(files) > len(pictures):
        logger.info("%s: %d files of other types passed over", folder, len(files) - len(pictures))
    if not records:
        raise InputError(
            f"{folder}: no image in it; expected {', '.join(SUFFIXES)} files, or images/ and masks/ folders"
        )
    if not dataset:
        records = _split_merged(records)
    return sorted(records, key=lambda record: (record.dataset, record.image_id, record.image_uri))


def pair(images: str, masks: str, dataset: str) -> list[Record]:
    """List any folder of images with any folder of masks; a mask has its image's path, an ending _mask may follow.

    Raises:
        InputError: a folder is not there or empty, or masks were given and not one of them fits an image.

    """
    part = _DataSet()
    for uri in storage.list_files(images, SUFFIXES):
        _add(part, _below(images, uri), uri)
    for uri in storage.list_files(masks, SUFFIXES) if masks else []:
        part.masks[""][_stem(_below(masks, uri))] = uri
    if masks and not part.masks:
        raise InputError(f"{masks}: no mask in it; expected {', '.join(SUFFIXES)} files, named as their images")
    if not part.images:
        raise InputError(f"{images}: no image in it; expected {', '.join(SUFFIXES)} files")
    return _join(part, dataset, masks)


def _sort_in(found: defaultdict[str, _DataSet], folder: str, uri: str) -> None:
    """Put one file where it belongs: the folder's names above it say what it is, and of which data set."""
    parts = _below(folder, uri).parts
    kinds = [i for i, part in enumerate(parts[:-1]) if part.lower() in _IMAGES + _MASKS]
    if not kinds:
        _add(found[""], PurePosixPath(*parts), uri)
        return
    at = kinds[-1]
    part, rest = found["/".join(parts[:at])], parts[at + 1 :]
    if parts[at].lower() in _IMAGES:
        _add(part, PurePosixPath(*rest), uri)
        return
    side = rest[0].lower() if rest[0].lower() in _SIDES else ""
    name = _stem(PurePosixPath(*(rest[1:] if side else rest)))
    if part.masks[side].setdefault(name, uri) != uri:
        part.spare.append(uri)


def _add(part: _DataSet, path: PurePosixPath, uri: str) -> None:
    name = _stem(path)
    if name in part.images:
        part.doubles.append((name, uri))
    else:
        part.images[name] = uri


def _join(part: _DataSet, dataset: str, where: str) -> list[Record]:
    """Give each image its masks; tell of masks that are left over."""
    used: set[str] = set()
    records = [_record(name, uri, part, dataset, used) for name, uri in [*part.images.items(), *part.doubles]]
    masks = [uri for files in part.masks.values() for uri in files.values()]
    left = sorted({*masks, *part.spare} - used)
    if masks and records and not used:
        raise InputError(f"{where}: no mask has the name of an image ({left[0]}): name it NAME.png or NAME_mask.png")
    if left:
        logger.warning(
            "%s: %d of %d masks fit no image (first: %s)", where, len(left), len(masks) + len(part.spare), left[0]
        )
    return records


def _record(name: str, uri: str, part: _DataSet, dataset: str, used: set[str]) -> Record:
    fitting = [files.get(name) or files.get(f"{name}_mask") for _, files in sorted(part.masks.items())]
    masks = tuple(mask for mask in fitting if mask)
    used.update(masks)
    image_id = _image_id(name)
    record = Record(image_id, dataset, uri, masks, patient_id=image_id)
    nlm = _NLM.match(image_id)
    if nlm:
        record = replace(record, finding=("normal", "abnormal")[int(nlm["abnormal"])])
    if "" not in part.masks and len(masks) == 1:
        reason = "one_sided_mask: only the left or the right mask is there: add the other, or take the image out"
        return replace(record, status="rejected", reason=reason)
    return record


def _split_merged(records: list[Record]) -> list[Record]:
    """Tell apart the hospitals that one folder merges, as Kaggle's does; cross-data-set studies need to."""
    hospitals: defaultdict[str, set[str]] = defaultdict(set)
    names = [(record, found["set"]) for record in records if (found := _NLM.match(record.image_id))]
    for record, name in names:
        hospitals[record.dataset].add(name)
    merged = {record.image_uri: _NLM_SETS[name] for record, name in names if len(hospitals[record.dataset]) > 1}
    return [replace(record, dataset=merged.get(record.image_uri, record.dataset)) for record in records]


def _below(folder: str, uri: str) -> PurePosixPath:
    relative = uri[len(folder) :].lstrip("/")
    return PurePosixPath(unquote(relative) if "://" in uri else relative)


def _stem(path: PurePosixPath) -> str:
    return str(path.with_suffix(""))


def _image_id(name: str) -> str:
    """Make an id of letters that are safe in tar members; where letters are lost, a digest tells apart."""
    plain = name.replace("/", "_")
    safe = _UNSAFE.sub("_", plain)
    return safe if safe == plain else f"{safe}-{_digest(name)}"


def dataset_name(folder: str) -> str:
    """Name a data set after its folder, in small letters that are safe in paths."""
    return _UNSAFE.sub("_", storage.name_of(folder)).strip("_").lower() or "archive"


def _names(folder: str, roots: list[str]) -> dict[str, str]:
    """Name the data sets of an archive; where two names would be one, a digest of the folder tells apart."""
    plain = {root: dataset_name(root.replace("/", "_") or folder) for root in roots}
    counts = Counter(plain.values())
    return {root: name if counts[name] == 1 else f"{name}-{_digest(root)}" for root, name in plain.items()}


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:6]
