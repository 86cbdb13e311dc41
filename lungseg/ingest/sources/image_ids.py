"""Ids of listed images from their paths, in memory that hardly grows with their number."""

import re
from array import array
from collections.abc import Iterable, Sequence
from typing import Self
from urllib.parse import unquote

import numpy as np
import xxhash
from numpy.typing import NDArray

from lungseg.ingest.file_names import image_id, short_digest, stem

Hashes = NDArray[np.uint64]

_WITH_DIGEST = re.compile(r"(.+)-[0-9a-f]{6}")


class ImageIds:
    """The id of an image is its path below the common folder of all; equal ids get a digest of the path.

    While it is built, it holds two 64-bit hashes of each row; afterwards only hashes that occur more than once.
    """

    def __init__(self, folder: str, ids: Hashes, uris: Hashes) -> None:
        """folder: as of `common_folder`. ids, uris: hashes of the plain id and of the decoded URI of each row."""
        order = np.argsort(ids)
        ids, by_id = ids[order], uris[order]
        self._folder = folder
        self._shared = np.unique(ids[1:][(ids[1:] == ids[:-1]) & (by_id[1:] != by_id[:-1])])
        ordered = np.sort(uris)
        self._repeated = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])

    @classmethod
    def of(cls, folder: str, pieces: Iterable[Sequence[str]]) -> Self:
        """Create the ids of the images of all pieces. folder: as of `common_folder`."""
        ids, uris = array("Q"), array("Q")
        for piece in pieces:
            named = [uri for uri in piece if uri]
            ids.extend([_hash(image_id(stem(_path(uri, folder)))) for uri in named])
            uris.extend([_hash(decoded(uri)) for uri in named])
        return cls(folder, np.frombuffer(ids, np.uint64), np.frombuffer(uris, np.uint64))

    def names(self, uris: Sequence[str]) -> list[str]:
        """Return the id of each URI of a piece; empty for an empty one."""
        paths = [_path(uri, self._folder) for uri in uris]
        own = [image_id(stem(path)) if path else "" for path in paths]
        # `a-3f2a1b` may be the name of a file, or the id of one of several files `a`.
        bases = [match[1] if (match := _WITH_DIGEST.fullmatch(name)) else name for name in own]
        shared = _contains(self._shared, own) | _contains(self._shared, bases)
        return [
            f"{name}-{short_digest(path)}" if is_shared and name else name
            for name, path, is_shared in zip(own, paths, shared, strict=True)
        ]

    def repeated(self, uris: Sequence[str]) -> NDArray[np.bool_]:
        """Return bool[N]: whether several rows name an image. A collision of hashes may give a false True."""
        return _contains(self._repeated, [decoded(uri) for uri in uris])


def common_folder(uris: Iterable[str], common: str | None = None) -> str | None:
    """Return the innermost folder that contains all files, with a slash at its end, or an empty text.

    common: the result for earlier files. None: there are no files.
    """
    for uri in uris:
        if common is None:
            common = uri[: uri.rfind("/") + 1]
        while not uri.startswith(common):
            common = common[: common.rfind("/", 0, -1) + 1]
    return common


def decoded(uri: str) -> str:
    """Return a URI without percent-encoding, and a path as it is: equal for all spellings of a file."""
    return unquote(uri) if "://" in uri else uri


def _path(uri: str, folder: str) -> str:
    path = uri[len(folder) :]
    return unquote(path) if "://" in uri else path


def _hash(text: str) -> int:
    return xxhash.xxh3_64_intdigest(text.encode())


def _contains(hashes: Hashes, names: Sequence[str]) -> NDArray[np.bool_]:
    if not hashes.size:
        return np.zeros(len(names), np.bool_)
    return np.isin(np.fromiter(map(_hash, names), np.uint64, len(names)), hashes)
