"""What names say: which files are images, which pictures are whose, and what ids and data sets are called."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable
from urllib.parse import unquote

from lungseg import storage
from lungseg.imaging.codecs import SUFFIXES

_UNSAFE = re.compile(r"[^A-Za-z0-9_-]+")
_LITTER = frozenset({"thumbs.db", "desktop.ini"})
_TEXT = re.compile(
    r"read_?me|licen[cs]e|copy(ing|right)|version|change(s|log)|history|news|notice|notes|todo|citation|authors|install"
    r"|contribut(ors|ing)|index|manifest|records|annotators|errata|(make|docker|lock)file|(md5|sha\d+)sums?|checksums"
    r"|dicomdir"
)


def relative_path(folder: str, uri: str) -> str:
    """Name a file by its path below a folder; what a URI quotes is unquoted."""
    relative = uri[len(folder) :].lstrip("/")
    return unquote(relative) if "://" in uri else relative


def is_system_file(path: str) -> bool:
    """Tell what operating systems leave behind: hidden files, `__MACOSX` folders, Thumbs.db and desktop.ini."""
    parts = path.lower().split("/")
    return parts[-1] in _LITTER or any(part.startswith(".") or part == "__macosx" for part in parts)


def is_image(path: str) -> bool:
    """Tell by its name whether a file may be an image.

    A known suffix says so. DICOM exports often have none, or a UID for a name whose last number looks like one: these
    count too, but for the names that texts without a suffix have.
    """
    name = storage.name_of(path).lower()
    if name.endswith(SUFFIXES):
        return True
    _, dot, last = name.rpartition(".")
    return last.isdecimal() if dot else not _TEXT.fullmatch(name)


def has_dicom_suffix(path: str) -> bool:
    """Tell by its name that a file is DICOM."""
    return path.lower().endswith((".dcm", ".dicom"))


def has_no_known_suffix(path: str) -> bool:
    """Tell an image whose name says nothing of its format: DICOM, most likely."""
    return bool(path) and is_image(path) and not path.lower().endswith(SUFFIXES)


def stem(path: str) -> str:
    """Cut a known suffix off; the last number of a UID stays."""
    head, _, last = path.rpartition(".")
    return head if f".{last.lower()}" in SUFFIXES else path


def image_id(name: str) -> str:
    """Make an id of letters that are safe in tar members; where letters are lost, a digest tells apart."""
    plain = name.replace("/", "_")
    safe = _UNSAFE.sub("_", plain)
    return safe if safe == plain else f"{safe}-{short_digest(name)}"


def dataset_name(folder: str) -> str:
    """Name a data set after its folder, in small letters that are safe in paths."""
    return _UNSAFE.sub("_", storage.name_of(folder)).strip("_").lower() or "archive"


def dataset_names(titles: Iterable[str], archive: str) -> dict[str, str]:
    """Name data sets after their titles, and one without a title after the archive.

    Where two names would be one, a digest of the title tells them apart.
    """
    plain = {title: dataset_name(title.replace("/", "_") or archive) for title in titles}
    counts = Counter(plain.values())
    return {title: name if counts[name] == 1 else f"{name}-{short_digest(title)}" for title, name in plain.items()}


def short_digest(name: str) -> str:
    """Six hexadecimal digits of a name's SHA-256."""
    return hashlib.sha256(name.encode()).hexdigest()[:6]
