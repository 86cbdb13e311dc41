"""JSRT radiographs with and without a lung nodule, and the SCR masks of them in several classes.

Source of the names: the files of db.jsrt.or.jp (Shiraishi et al., AJR 2000) and of SCR (van Ginneken et al., Med Image
Anal 2006). SCR masks are half as wide and high as the images.
"""

import logging
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from lungseg import storage
from lungseg.config.class_names import ONE_CLASS
from lungseg.errors import InputError
from lungseg.ingest.file_names import relative_path
from lungseg.ingest.reason_codes import reject
from lungseg.ingest.sources.demographics import parse_age_group, parse_sex
from lungseg.ingest.sources.folder_kinds import kind_of
from lungseg.ingest.sources.mask_matching import ONE_SIDED_MASK, other_mask
from lungseg.schema import Record

logger = logging.getLogger(__name__)

_FILE = re.compile(r"(JPC[LN]N\d{3})(?:_mask)?\.(?:img|png|gif|tiff?|jpe?g|bmp|dcm|dicom)", re.IGNORECASE)
# Names of folders without blanks. `masks` alone is usual for lungs of SCR that were joined.
_CLASSES = {
    "leftlung": "lung",
    "rightlung": "lung",
    "masks": "lung",
    "mask": "lung",
    "heart": "heart",
    "leftclavicle": "clavicle",
    "rightclavicle": "clavicle",
}
_CLINICAL = frozenset({"clndat_en.txt", "cnndat_en.txt"})
# One file has tabs between cells, the other blanks, and their line ends differ. In both a row starts with the image's
# name, and the age, or ? if unknown, comes before the sex.
_ROW = re.compile(r"(JPC[LN]N\d{3})\.IMG((?:(?!JPC[LN]N\d{3}).)*)", re.IGNORECASE | re.DOTALL)
_AGE_AND_SEX = re.compile(r"(\S+)\s+(male|female)\b", re.IGNORECASE)


AgeAndSex = tuple[str | None, str | None]


@dataclass
class _Files:
    """The files of JSRT and SCR in an archive; `masks` by image, as (folder's name without blanks, uri).

    guesses: masks in folders whose name has an unknown word, used for images without other masks.
    """

    images: list[tuple[str, str]] = field(default_factory=list)
    masks: defaultdict[str, list[tuple[str, str]]] = field(default_factory=lambda: defaultdict(list))
    guesses: defaultdict[str, list[tuple[str, str]]] = field(default_factory=lambda: defaultdict(list))
    clinical: list[str] = field(default_factory=list)


def recognise(folder: str, files: Sequence[str], classes: Sequence[str] = ONE_CLASS) -> list[Record]:  # noqa: ARG001
    """Take JPCLN001.IMG to JPCNN093.IMG, in any folder and format, as the dataset jsrt, with the SCR masks.

    Left and right of a class are two files. The finding is nodule or no_nodule. Age and sex come from `CLNDAT_EN.txt`
    and `CNNDAT_EN.TXT`, if present.
    """
    jsrt_files = _Files()
    for uri in files:
        _add_file(jsrt_files, relative_path(folder, uri), uri)
    people = _read_people(jsrt_files.clinical) if jsrt_files.images else {}
    records = [
        _record(name, uri, jsrt_files.masks[name] or jsrt_files.guesses[name][:1], people.get(name, (None, None)))
        for name, uri in jsrt_files.images
    ]
    return records + (_unused_guesses(folder, jsrt_files, records) if records else [])


def _unused_guesses(folder: str, jsrt_files: _Files, records: Sequence[Record]) -> list[Record]:
    """Build a rejected record of each mask in a folder with an unknown word that is not used."""
    used = {uri for record in records for uri in record.mask_uris}
    unused = [uri for guesses in jsrt_files.guesses.values() for _, uri in guesses if uri not in used]
    problem = "another folder has the masks of this image: remove one of them"
    return [other_mask(folder, uri, "jsrt", problem) for uri in unused]


def _add_file(jsrt_files: _Files, path: str, uri: str) -> None:
    *folders, name = path.split("/")
    if name.lower() in _CLINICAL:
        jsrt_files.clinical.append(uri)
        return
    match = _FILE.fullmatch(name)
    if not match:
        return
    kind = _kind(folders[-1]) if folders else ""
    folder_kind = kind_of(folders[-1]) if folders else None
    if kind in _CLASSES and folder_kind is not None and folder_kind.is_guess:
        jsrt_files.guesses[match[1].upper()].append((kind, uri))
    elif kind in _CLASSES:
        jsrt_files.masks[match[1].upper()].append((kind, uri))
    else:
        jsrt_files.images.append((match[1].upper(), uri))


def _kind(folder: str) -> str:
    """Return the key in _CLASSES of a folder's name; of other names, such as `lung masks`, the words decide."""
    name = re.sub(r"[ _-]", "", folder.lower())
    kind = kind_of(folder)
    if name in _CLASSES or kind is None or kind.content != "lungs":
        return name
    return {"leftmask": "leftlung", "rightmask": "rightlung"}.get(kind.side, "masks")


def _record(name: str, uri: str, masks: list[tuple[str, str]], person: AgeAndSex) -> Record:
    order = list(_CLASSES)
    masks = sorted(masks, key=lambda mask: (order.index(mask[0]), mask[1]))
    lungs = {kind for kind, _ in masks if _CLASSES[kind] == "lung"}
    is_one_sided = lungs in ({"leftlung"}, {"rightlung"})
    record = Record(
        image_id=name,
        dataset="jsrt",
        image_uri=uri,
        mask_uris=tuple(mask for _, mask in masks),
        mask_classes=tuple(_CLASSES[kind] for kind, _ in masks),
        patient_id=name,
        finding="nodule" if name[3] == "L" else "no_nodule",
        age_group=person[0],
        sex=person[1],
    )
    return reject(record, ONE_SIDED_MASK) if is_one_sided else record


def _read_people(uris: Iterable[str]) -> dict[str, AgeAndSex]:
    """Read age group and sex by image; log a warning for a file that cannot be read."""
    people = {}
    for uri in uris:
        try:
            text = storage.read_bytes(uri).decode("utf-8", "replace")
        except InputError as error:
            logger.warning("%s; age and sex stay unknown: download the file again", error)
            continue
        for name, cells in _ROW.findall(text):
            match = _AGE_AND_SEX.search(cells)
            if match:
                people[name.upper()] = (parse_age_group(match[1]), parse_sex(match[2]))
    return people
