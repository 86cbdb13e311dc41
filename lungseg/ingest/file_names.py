"""File names: recognise images and system files, and derive ids and dataset names."""

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from urllib.parse import unquote

from lungseg import storage
from lungseg.imaging.codecs import SUFFIXES

MAX_ID = 200
"""Longest id in bytes. A file name may have 255, and exports and tars add a suffix to the id."""

_MAX_DATASET = 150  # names of tars and runs contain the name of the dataset
_UNSAFE = re.compile(r"[^A-Za-z0-9_-]+")
_SYSTEM_FILES = frozenset({"thumbs.db", "desktop.ini"})
_TEXT_FILES = re.compile(
    r"read_?me|licen[cs]e|copy(ing|right)|version|change(s|log)|history|news|notice|notes|todo|citation|authors|install"
    r"|contribut(ors|ing)|index|manifest|records|annotators|errata|(make|docker|lock)file|(md5|sha\d+)sums?|checksums"
    r"|dicomdir"
)


def relative_path(folder: str, uri: str) -> str:
    """Return the path of a file below a folder in normal form, without the percent-encoding of a URI."""
    relative = uri[len(folder) :].lstrip("/")
    return normal_form(unquote(relative) if "://" in uri else relative)


def normal_form(name: str) -> str:
    """Return a name with composed characters (Unicode NFC); macOS and some archives store them decomposed."""
    return unicodedata.normalize("NFC", name)


def is_system_file(path: str) -> bool:
    """Return whether an operating system wrote the file: hidden, in `__MACOSX`, Thumbs.db or desktop.ini."""
    names = path.lower().split("/")
    return names[-1] in _SYSTEM_FILES or any(name.startswith(".") or name == "__macosx" for name in names)


def is_image(path: str) -> bool:
    """Return whether a file may be an image, judged by its name.

    True for a known suffix. DICOM exports often have no suffix, or a UID as name whose last number looks like one. So
    these are true too, except for common names of text files without a suffix.
    """
    name = storage.name_of(path).lower()
    if name.endswith(SUFFIXES):
        return True
    _, dot, last = name.rpartition(".")
    return last.isdecimal() if dot else not _TEXT_FILES.fullmatch(name)


def has_dicom_suffix(path: str) -> bool:
    """Return whether a file has a suffix of DICOM."""
    return path.lower().endswith((".dcm", ".dicom"))


def has_no_known_suffix(path: str) -> bool:
    """Return whether a file may be an image of unknown format; most of these are DICOM."""
    return bool(path) and is_image(path) and not path.lower().endswith(SUFFIXES)


def unnamed_patient(record_id: str, path: str) -> str:
    """Return the patient of an image whose archive names none: the image counts as a patient of its own.

    Empty for what may be DICOM: its file names the patient, and its name often consists of the UIDs of the study.
    """
    return "" if has_dicom_suffix(path) or has_no_known_suffix(path) else record_id


def stem(path: str) -> str:
    """Remove a known suffix; the last number of a UID stays."""
    head, _, last = path.rpartition(".")
    return head if f".{last.lower()}" in SUFFIXES else path


def image_id(name: str) -> str:
    """Build an id from characters that are safe in tar members; add a digest if characters were replaced.

    An id longer than MAX_ID is cut and gets a longer digest of the name. The id depends on the name only.
    """
    name = normal_form(name)
    flat = name.replace("/", "_")
    safe = _UNSAFE.sub("_", flat)
    return shorten(safe if safe == flat else f"{safe}-{short_digest(name)}", name, MAX_ID)


def shorten(identifier: str, name: str, length: int) -> str:
    """Cut an id, and add 16 hexadecimal digits of the SHA-256 of the name that it was made from."""
    if len(identifier) <= length:
        return identifier
    return f"{identifier[: length - 17]}-{_digest(name)[:16]}"


def dataset_name(folder: str) -> str:
    """Name a dataset after its folder, in at most 150 lower-case characters that are safe in paths."""
    name = normal_form(storage.name_of(folder))
    return shorten(_UNSAFE.sub("_", name).strip("_").lower() or "archive", name, _MAX_DATASET)


def dataset_names(titles: Iterable[str], archive: str) -> dict[str, str]:
    """Name datasets after their titles, and one with an empty title after the archive.

    Equal names get a digest of the title.
    """
    names = {title: dataset_name(title.replace("/", "_") or archive) for title in titles}
    counts = Counter(names.values())
    return {title: name if counts[name] == 1 else f"{name}-{short_digest(title)}" for title, name in names.items()}


def short_digest(name: str) -> str:
    """Return the first six hexadecimal digits of the SHA-256 of a name."""
    return _digest(name)[:6]


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()
