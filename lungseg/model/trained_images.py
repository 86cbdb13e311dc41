"""The images that a model was trained on, as a sorted array of digests that the processes of a machine share."""

import logging
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lungseg.arrow import pa, pc
from lungseg.model.checkpoint import Checkpoint, trained_on_table

logger = logging.getLogger(__name__)

Digests = NDArray[np.bytes_]
"""Digests as ASCII text, S[N] for texts of the length S, ascending."""

_FOLDER = Path("~/.cache/lungseg/trained")
SHARED_FROM = 100_000  # images; below, an array in each process takes less than 4 MB
_KEPT_S = 7 * 24 * 3600.0


class TrainedImages:
    """Tells whether a digest is among those of a model's training and validation images."""

    def __init__(self, digests: Digests) -> None:
        self.digests = digests

    def __contains__(self, digest: str) -> bool:
        text = digest.encode()
        if not self.digests.size or len(text) > self.digests.dtype.itemsize:
            return False
        key = np.array(text, self.digests.dtype)
        place = np.searchsorted(self.digests, key)
        return bool(place < self.digests.size and self.digests[place] == key)


def trained_images(checkpoint: Checkpoint) -> TrainedImages:
    """Return the images that a checkpoint was trained on; many are in a file that all processes map into memory.

    Raises:
        InputError: trained_on.parquet cannot be read.

    """
    listed = checkpoint.config.get("trained_on_digests")
    if listed is not None:
        return TrainedImages(np.sort(np.array([text.encode() for text in listed], np.bytes_)))
    digest = str(checkpoint.config["digests"].get("trained_on.parquet", ""))
    path = _FOLDER.expanduser() / f"{digest}.npy"
    if digest and (mapped := _map(path)) is not None:
        return TrainedImages(mapped)
    digests = _sorted_digests(trained_on_table(checkpoint).column("pixel_digest"))
    if digest and digests.size >= SHARED_FROM and _write(path, digests):
        mapped = _map(path)
        return TrainedImages(digests if mapped is None else mapped)
    return TrainedImages(digests)


def _sorted_digests(column: pa.ChunkedArray) -> Digests:
    text = column.combine_chunks().cast(pa.binary())
    length = pc.max(pc.binary_length(text)).as_py() or 1
    if len(text) and pc.min(pc.binary_length(text)).as_py() == length:
        data: Any = pa.concat_arrays([text]).cast(pa.binary(length)).buffers()[1]
        digests = np.frombuffer(data, f"S{length}", len(text))
    else:
        digests = np.array(text.to_pylist(), f"S{length}")
    return np.sort(digests)


def _map(path: Path) -> Digests | None:
    try:
        mapped: Digests = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError):  # there is none, or a damaged one
        return None
    return mapped


def _write(path: Path, digests: Digests) -> bool:
    """Write an array for other processes, and delete those of earlier weeks; return whether there was room."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for other in path.parent.glob("*"):
            if other.stat().st_mtime < time.time() - _KEPT_S:
                other.unlink(missing_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            np.save(file, digests)
        os.replace(file.name, path)
    except OSError as error:
        logger.warning("%s: no room for the digests of the trained images (%s): each process keeps a copy", path, error)
        return False
    return True
