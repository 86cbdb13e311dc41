"""Names of output files: like those of the inputs, safe on every file system, each only once."""

import re
from collections.abc import Iterable, Iterator

from lungseg.ingest.file_names import normal_form, short_digest

_MAX_NAME = 150  # bytes of a folder or file name; a suffix and a number are added
_UNSAFE = re.compile(r'[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\\:*?"<>|/]+')
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # on Windows, also as NUL.png


def safe_name(name: str) -> str:
    """Return the name of a file or folder without what a file system refuses, hides or takes for another folder."""
    safe = _UNSAFE.sub("_", normal_form(name)).strip(" .") or "image"
    if _RESERVED.fullmatch(safe):
        safe = f"_{safe}"
    encoded = safe.encode()
    if len(encoded) <= _MAX_NAME:
        return safe
    return f"{encoded[: _MAX_NAME - 7].decode(errors='ignore')}-{short_digest(name)}"


def safe_path(path: str) -> str:
    """Return a relative path of safe names; `..` and absolute paths stay inside the folder."""
    return "/".join(safe_name(name) for name in path.split("/") if name not in ("", ".", "..")) or "image"


def unique_paths(paths: Iterable[str]) -> list[str]:
    """Number equal paths: a, a-2, a-3. Names that differ in case only are equal on macOS and Windows."""
    taken: set[str] = set()
    unique = []
    for path in paths:
        candidate = next(name for name in _candidates(path) if name.casefold() not in taken)
        taken.add(candidate.casefold())
        unique.append(candidate)
    return unique


def _candidates(path: str) -> Iterator[str]:
    yield path
    number = 2
    while True:
        yield f"{path}-{number}"
        number += 1
