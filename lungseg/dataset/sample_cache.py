"""Decoded samples in memory that several processes map: each is stored once, however many of them use it."""

import mmap
import os
import tempfile
import threading
from dataclasses import replace
from typing import BinaryIO

import numpy as np

from lungseg.arrays import U8
from lungseg.dataset.shard_format import masks_of
from lungseg.schema import Sample

_NO_PIXELS = np.empty((0, 0), np.uint8)


class SharedBytes:
    """Zeroed memory that child processes can map: they inherit the descriptor and call `map_bytes`.

    It belongs to a file without a name, not to /dev/shm, which has 64 MB in a container of Docker. Memory is used once
    it is written to, and freed when the last process that maps it ends, however it ends.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._file = _nameless_file()
        self._file.truncate(size)
        self.array = map_bytes(self.descriptor, size)

    @property
    def descriptor(self) -> int:
        """Number of the open file."""
        return self._file.fileno()


def map_bytes(descriptor: int, size: int) -> U8:
    """Map the memory of a `SharedBytes` as u8[size]; writes are seen by every process."""
    return np.frombuffer(mmap.mmap(descriptor, size), np.uint8) if size else np.empty(0, np.uint8)


def _nameless_file() -> BinaryIO:
    if hasattr(os, "memfd_create"):  # Linux
        return open(os.memfd_create("lungseg"), "r+b", buffering=0)
    return tempfile.TemporaryFile(buffering=0)


def pixels_at(memory: U8, offset: int, side: int, classes: int) -> tuple[U8, U8]:
    """Return the image u8[side,side] and the masks u8[classes,side,side] stored in u8[N] at an offset, as views."""
    planes = memory[offset : offset + sample_bytes(side, classes)].reshape(1 + classes, side, side)
    return planes[0], planes[1:]


def sample_bytes(side: int, classes: int) -> int:
    """Return the bytes of an image and its masks."""
    return (1 + classes) * side * side


def without_pixels(sample: Sample) -> Sample:
    """Return a sample with an empty image and without its masks, quick to send to another process."""
    return replace(sample, image=_NO_PIXELS, masks=None)


class SampleCache:
    """Decoded samples by position, up to a number of bytes; for all threads of a process.

    Other processes map `memory` and are told where a sample is. They never see a sample that is not complete: its
    position is entered after its pixels are written.
    """

    def __init__(self, size: int) -> None:
        self.memory = SharedBytes(size)
        self._used = 0
        self._samples: dict[int, tuple[Sample, int]] = {}
        self._lock = threading.Lock()

    def get(self, position: int) -> Sample | None:
        """Return a sample whose pixels are in this cache; they are shared, so never change them."""
        return self._samples[position][0] if position in self._samples else None

    def offset_of(self, position: int) -> int:
        """Return where the pixels of a cached sample are in `memory`."""
        return self._samples[position][1]

    def reserve(self, size: int) -> int | None:
        """Reserve bytes for a sample; return their offset in `memory`, or None where too few are left."""
        with self._lock:
            if size > self.memory.size - self._used:
                return None
            self._used += size
            return self._used - size

    def enter(self, position: int, offset: int, sample: Sample, classes: int) -> None:
        """Enter a sample whose image and masks were written to reserved bytes, as `pixels_at` reads them."""
        image, masks = pixels_at(self.memory.array, offset, sample.geometry.size, classes)
        self._samples[position] = replace(sample, image=image, masks=masks), offset

    def add(self, position: int, sample: Sample, classes: int) -> Sample:
        """Store a sample of a number of classes if there is room; return the stored one, else the given one.

        One without masks is stored with masks that are NOT_ANNOTATED.
        """
        stored = self.get(position)
        if stored is not None:
            return stored
        side = sample.image.shape[0]
        if (offset := self.reserve(sample_bytes(side, classes))) is None:
            return sample
        image, masks = pixels_at(self.memory.array, offset, side, classes)
        image[:], masks[:] = sample.image, masks_of(sample, classes)
        self.enter(position, offset, sample, classes)
        return self._samples[position][0]
