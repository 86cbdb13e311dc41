"""Tars of a bucket, kept on this machine's disk: fetched once for all its processes, within a budget."""

import fcntl
import logging
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lungseg import storage
from lungseg.errors import InputError

logger = logging.getLogger(__name__)

_FOLDER = Path("~/.cache/lungseg/shards")
_SPARE = 5 << 30  # bytes of the disk that are left to others, as checkpoints and Ray
_TODAY_NS = 24 * 3600 * 1_000_000_000


class ShardCache:
    """Opens tars of any path or URI for reading; those of a bucket through copies in ~/.cache/lungseg/shards."""

    def __init__(self, budget_mib: int) -> None:
        self._folder = _FOLDER.expanduser()
        self._budget = budget_mib << 20
        self._copies: dict[str, tuple[Path, int]] = {}

    def read(self, path: str, ranges: dict[str, tuple[int, int]]) -> dict[str, bytes]:
        """Read ranges (offset, size) of a tar, bytes by name.

        Raises:
            InputError: it is not there or cannot be read.

        """
        if "://" not in path:
            try:
                return _read(Path(path), ranges)
            except OSError as error:
                raise InputError(f"{path}: cannot be read ({error.strerror}): run jobs/prepare.py again") from None
        if path not in self._copies:
            size, changed = storage.stat(path)
            self._copies[path] = (self._folder / f"{storage.digest([path, size, changed])}.tar", size)
        copy, size = self._copies[path]
        if size <= self._budget and self._fetch(path, copy, size):
            try:
                return _read(copy, ranges)
            except FileNotFoundError:
                pass  # another process needed its room
        return {name: storage.read_range(path, *where) for name, where in ranges.items()}

    def _fetch(self, path: str, copy: Path, size: int) -> bool:
        """Make sure of a copy; while one process fetches, the others wait for it. False where there is no room."""
        if copy.exists():
            return True
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with _locked(copy.with_suffix(".lock")):
                if not copy.exists():
                    with _locked(self._folder / "room.lock"):
                        if not self._make_room(size):
                            return False
                        _hold(copy, size)
                    _write(copy, path)
        except OSError as error:
            logger.warning("%s: tars are not kept there (%s): they are read from afar", self._folder, error.strerror)
            self._budget = 0
            return False
        return True

    def _make_room(self, size: int) -> bool:
        """Delete copies of earlier days, the oldest first, until `size` more fits; say whether it does.

        Not those of today: reading is shuffled over all tars, and each would soon be fetched again.
        """
        found = sorted(
            (stat.st_mtime_ns, stat.st_size, entry)
            for kind in ("*.writing", "*.tar")  # so one that ends meanwhile counts twice, not never
            for entry in self._folder.glob(kind)
            if (stat := _stat(entry)) is not None
        )
        free = shutil.disk_usage(self._folder).free - _SPARE
        room = min(free, self._budget - sum(length for _, length, _ in found))
        for changed, length, entry in found:
            if room >= size or changed > time.time_ns() - _TODAY_NS:
                break
            entry.unlink(missing_ok=True)
            entry.with_suffix(".lock").unlink(missing_ok=True)
            room += length
        return room >= size


def _read(file: Path, ranges: dict[str, tuple[int, int]]) -> dict[str, bytes]:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        return {name: os.pread(descriptor, size, offset) for name, (offset, size) in ranges.items()}
    finally:
        os.close(descriptor)


def _stat(entry: Path) -> os.stat_result | None:
    try:
        return entry.stat()
    except FileNotFoundError:  # just fetched, or given up
        return None


def _hold(copy: Path, size: int) -> None:
    """Take room for a copy before it is fetched, so that others who look for room see what is taken."""
    with copy.with_suffix(".writing").open("wb") as file:
        file.truncate(size)


def _write(copy: Path, path: str) -> None:
    """Fetch a copy that nobody sees before it is whole. Without fsync: each sample's checksum is compared anyway."""
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
    """Hold a lock among the processes of this machine; it is let go when a process ends, however it ends."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
