"""A process that reads, decodes and augments training samples for one rank. It imports no torch.

It answers one request at a time on a socket, and ends when the rank closes its end or dies, however it dies. Pixels
travel in shared memory.
"""

import functools
import signal
import sys
import traceback
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection

import cv2

from lungseg import logs
from lungseg.dataset.sample_cache import map_bytes, pixels_at, without_pixels
from lungseg.dataset.sample_reader import SampleSource, read_sample
from lungseg.dataset.shard_cache import ShardCache
from lungseg.dataset.shard_format import masks_of
from lungseg.errors import TaskResult
from lungseg.schema import Sample
from lungseg.training.transform import EpochTransform, make_transform


@dataclass(frozen=True)
class Setup:
    """First message. cache, result: descriptor and size of shared memory for decoded samples and for the result.

    classes: number of masks of a sample.
    """

    cache: tuple[int, int]
    result: tuple[int, int]
    disk_mib: int
    classes: int


@dataclass(frozen=True)
class Request:
    """One sample to augment.

    cached: the sample without pixels if they are in the cache. offset: where they are there, or where to put them after
    reading `source`; None: nowhere.
    """

    transform: EpochTransform
    source: SampleSource
    cached: Sample | None
    offset: int | None


@dataclass(frozen=True)
class Reply:
    """The sample without pixels; an augmented image and masks u8[K,side,side] are in the memory for the result."""

    sample: Sample
    side: int


class Loader:
    """Answers requests."""

    def __init__(self, setup: Setup) -> None:
        self._cache, self._result = map_bytes(*setup.cache), map_bytes(*setup.result)
        self._tars = ShardCache(setup.disk_mib)
        self._classes = setup.classes
        self._make_transform = functools.lru_cache(maxsize=1)(make_transform)

    def load(self, request: Request) -> Reply:
        """Read a sample or find it in the cache, augment it, and put it into the memory for the result.

        Raises:
            LungsegError: the sample cannot be read, or custom code failed.

        """
        sample = self._cached(request) or self._read(request)
        augmented = self._make_transform(*request.transform)(sample)
        side = augmented.image.shape[0]
        image, masks = pixels_at(self._result, 0, side, self._classes)
        image[:] = augmented.image
        assert augmented.masks is not None
        masks[:] = augmented.masks
        return Reply(without_pixels(sample), side)

    def _cached(self, request: Request) -> Sample | None:
        if request.cached is None or request.offset is None:
            return None
        image, masks = pixels_at(self._cache, request.offset, request.cached.geometry.size, self._classes)
        return replace(request.cached, image=image, masks=masks)

    def _read(self, request: Request) -> Sample:
        source = request.source
        sample = read_sample(source.tar, source.row, source.classes, reader=self._tars.read)
        if request.offset is not None:
            image, masks = pixels_at(self._cache, request.offset, sample.geometry.size, self._classes)
            image[:], masks[:] = sample.image, masks_of(sample, self._classes)
        return sample


def main() -> None:
    """Answer the requests on the socket that the first argument numbers, until the rank closes its end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process of a terminal; the rank decides
    logs.configure()
    cv2.setNumThreads(1)  # one process a core
    with Connection(int(sys.argv[1])) as connection:
        try:
            loader = Loader(connection.recv())
            while True:
                connection.send(_answer(loader, connection.recv()))
        except (EOFError, ConnectionError):
            return


def _answer(loader: Loader, request: Request) -> TaskResult | str:
    """Return the reply or a LungsegError, or the traceback of a bug."""
    try:
        return TaskResult.of(loader.load, request)
    except Exception:
        return traceback.format_exc()
