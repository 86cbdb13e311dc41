"""Local copies of tars that are stored in a bucket: fetched once for all processes, within a disk budget."""

import fcntl
import logging
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lungseg import storage
from lungseg.storage import filesystems

logger = logging.getLogger(__name__)

_FOLDER = Path("~/.cache/lungseg/shards")
_MAX_GAP = 4096  # bytes between two members that are read together; their headers and padding are 512 to 1,535
_RETRY_S = 600.0  # until a full cache is looked at again
_RESERVED_BYTES = 5 << 30  # disk space left for others, such as checkpoints and Ray
_DAY_NS = 24 * 3600 * 1_000_000_000


ReadRange = Callable[[str, int, int], bytes]
"""Reads `size` bytes at an offset of a file."""


def read_ranges(
    path: str, ranges: dict[str, tuple[int, int]], read_range: ReadRange = storage.read_range
) -> dict[str, bytes]:
    """Read byte ranges (offset, size) of a tar on a disk or in a bucket, by name; adjacent ones in one read.

    Raises:
        InputError: the tar does not exist or cannot be read.

    """
    contents: dict[str, bytes] = {}
    for start, end, names in _adjacent(ranges):
        content = read_range(path, start, end - start)
        for name in names:
            first = ranges[name][0] - start
            contents[name] = content[first : first + ranges[name][1]]
    return {name: contents[name] for name in ranges}


def _adjacent(ranges: dict[str, tuple[int, int]]) -> list[tuple[int, int, list[str]]]:
    """Join ranges with small gaps; return start, end and names of each group."""
    groups: list[tuple[int, int, list[str]]] = []
    for name, (offset, size) in sorted(ranges.items(), key=lambda item: item[1]):
        if groups and 0 <= offset - groups[-1][1] <= _MAX_GAP:
            start, _, names = groups[-1]
            groups[-1] = start, offset + size, [*names, name]
        else:
            groups.append((offset, offset + size, [name]))
    return groups


class ShardCache:
    """Reads tars at any path or URI; tars in a bucket through copies in ~/.cache/lungseg/shards."""

    def __init__(self, budget_mib: int) -> None:
        self._folder = _FOLDER.expanduser()
        self._budget = budget_mib << 20
        self._copies: dict[str, tuple[Path, int]] = {}
        self._bucket = storage.RangeReader()
        self._full_until = -math.inf

    def read(self, path: str, ranges: dict[str, tuple[int, int]]) -> dict[str, bytes]:
        """Read as `read_ranges`, from a local copy where the budget has room for one."""
        if "://" not in path or not self._budget:
            return read_ranges(path, ranges, self._bucket.read)
        if path not in self._copies:
            size, modified = storage.stat(path)
            self._copies[path] = (self._folder / f"{storage.digest([path, size, modified])}.tar", size)
        copy, size = self._copies[path]
        if size <= self._budget and self._fetch(path, copy, size):
            try:
                return _read_copy(copy, ranges)
            except FileNotFoundError:
                pass  # another process deleted it to make room
        return read_ranges(path, ranges, self._bucket.read)

    def _fetch(self, path: str, copy: Path, size: int) -> bool:
        """Ensure that a copy exists; return False where there is no room.

        While one process fetches, the others wait for it. Once the cache is full, it is left alone for a while: to look
        for room takes a lock of the machine and lists the folder, longer than to read a sample from the bucket.
        """
        if copy.exists():
            return True
        if time.monotonic() < self._full_until:
            return False
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with _locked(copy.with_suffix(".lock")):
                if not copy.exists():
                    with _locked(self._folder / "room.lock"):
                        if not self._make_room(size):
                            self._full_until = time.monotonic() + _RETRY_S
                            return False
                        _reserve(copy, size)
                    _download(copy, path)
        except OSError as error:
            logger.warning(
                "%s: cannot store copies of tars (%s): tars are read from the bucket", self._folder, error.strerror
            )
            self._budget = 0
            return False
        return True

    def _make_room(self, size: int) -> bool:
        """Delete copies of earlier days, the oldest first, until `size` more bytes fit; return whether they do.

        Copies of today stay: training reads all tars in random order and would soon fetch each of them again.
        """
        copies = sorted(
            (stat.st_mtime_ns, stat.st_size, entry)
            # In this order, a download that ends meanwhile is counted twice rather than never.
            for pattern in ("*.writing", "*.tar")
            for entry in self._folder.glob(pattern)
            if (stat := _try_stat(entry)) is not None
        )
        free = shutil.disk_usage(self._folder).free - _RESERVED_BYTES
        room = min(free, self._budget - sum(length for _, length, _ in copies))
        for modified, length, entry in copies:
            if room >= size or modified > time.time_ns() - _DAY_NS:
                break
            entry.unlink(missing_ok=True)
            entry.with_suffix(".lock").unlink(missing_ok=True)
            room += length
        return room >= size


def _read_copy(copy: Path, ranges: dict[str, tuple[int, int]]) -> dict[str, bytes]:
    return read_ranges(str(copy), ranges, filesystems.read_file)


def _try_stat(entry: Path) -> os.stat_result | None:
    try:
        return entry.stat()
    except FileNotFoundError:  # just renamed or deleted
        return None


def _reserve(copy: Path, size: int) -> None:
    """Reserve disk space for a copy, so that other processes count it before it is downloaded."""
    with copy.with_suffix(".writing").open("wb") as file:
        file.truncate(size)


def _download(copy: Path, path: str) -> None:
    """Download a copy; it gets its final name when it is complete.

    No fsync: the checksums of each sample are verified on every read.
    """
    unfinished = copy.with_suffix(".writing")
    try:
        content = storage.read_bytes(path)
        with unfinished.open("r+b") as file:
            file.write(content)
            file.truncate()
        unfinished.replace(copy)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock between the processes of this machine; the system releases it when the process ends."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
