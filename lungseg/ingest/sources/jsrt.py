"""JSRT's radiographs with and without a lung nodule, and SCR's masks of them in several classes.

Source of the names: the files of db.jsrt.or.jp (Shiraishi et al., AJR 2000) and of SCR (van Ginneken et al., Med Image
Anal 2006), whose masks are half as wide and high as the images.
"""

import logging
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from lungseg import storage
from lungseg.errors import InputError
from lungseg.ingest.file_names import relative_path
from lungseg.ingest.reason_codes import reject
from lungseg.ingest.sources.demographics import parse_age_group, parse_sex
from lungseg.ingest.sources.mask_matching import ONE_SIDED_MASK
from lungseg.schema import Record

logger = logging.getLogger(__name__)

_FILE = re.compile(r"(JPC[LN]N\d{3})(?:_mask)?\.(?:img|png|gif|tiff?|jpe?g|bmp|dcm|dicom)", re.IGNORECASE)
# Folders' names without blanks. `masks` alone is what people make who join SCR's two lungs.
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
# One file parts its cells by tabs, the other by blanks, and lines end in old ways: the image's name begins a row, and
# the age stands before the sex in both, a ? where it is not known.
_ROW = re.compile(r"(JPC[LN]N\d{3})\.IMG((?:(?!JPC[LN]N\d{3}).)*)", re.IGNORECASE | re.DOTALL)
_PERSON = re.compile(r"(\S+)\s+(male|female)\b", re.IGNORECASE)


@dataclass
class _Found:
    """The files of JSRT and SCR in an archive; masks by image, then by folder in the order of _CLASSES."""

    images: list[tuple[str, str]] = field(default_factory=list)
    masks: defaultdict[str, list[tuple[str, str]]] = field(default_factory=lambda: defaultdict(list))
    clinical: list[str] = field(default_factory=list)


def recognise(folder: str, files: Sequence[str]) -> list[Record]:
    """Take JPCLN001.IMG to JPCNN093.IMG, in whatever folder and format, as the data set jsrt, with SCR's masks.

    Left and right of a class are two files. The finding is nodule or no_nodule; age and sex come from `CLNDAT_EN.txt`
    and `CNNDAT_EN.TXT` where these are there.
    """
    found = _Found()
    for uri in files:
        _sort_in(found, relative_path(folder, uri), uri)
    people = _read_people(found.clinical) if found.images else {}
    return [_record(name, uri, found.masks[name], people.get(name, (None, None))) for name, uri in found.images]


def _sort_in(found: _Found, path: str, uri: str) -> None:
    *above, name = path.split("/")
    if name.lower() in _CLINICAL:
        found.clinical.append(uri)
        return
    known = _FILE.fullmatch(name)
    if not known:
        return
    kind = re.sub(r"[ _-]", "", above[-1].lower()) if above else ""
    if kind in _CLASSES:
        found.masks[known[1].upper()].append((kind, uri))
    else:
        found.images.append((known[1].upper(), uri))


def _record(name: str, uri: str, masks: list[tuple[str, str]], person: tuple[str | None, str | None]) -> Record:
    order = list(_CLASSES)
    masks = sorted(masks, key=lambda mask: (order.index(mask[0]), mask[1]))
    lungs = {kind for kind, _ in masks if _CLASSES[kind] == "lung"}
    one_sided = lungs in ({"leftlung"}, {"rightlung"})
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
    return reject(record, ONE_SIDED_MASK) if one_sided else record


def _read_people(uris: Iterable[str]) -> dict[str, tuple[str | None, str | None]]:
    """Age group and sex by image, from the files that can be read."""
    people = {}
    for uri in uris:
        try:
            text = storage.read_bytes(uri).decode("utf-8", "replace")
        except InputError as error:
            logger.warning("%s: age and sex stay unknown: fetch it again", error)
            continue
        for name, cells in _ROW.findall(text):
            person = _PERSON.search(cells)
            if person:
                people[name.upper()] = (parse_age_group(person[1]), parse_sex(person[2]))
    return people
