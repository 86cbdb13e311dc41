"""Byte ranges of many files in buckets, in one request each."""

import threading
from collections import OrderedDict
from urllib.parse import unquote, urlsplit

from lungseg.arrow import pa, pafs
from lungseg.storage import files, filesystems

_OPEN_FILES = 4096  # some KB each


class RangeReader:
    """Reads byte ranges of files that do not change meanwhile, from any thread.

    `read_range` connects, asks for the region of the bucket and for the size of the file each time. This keeps the
    connection of each bucket, and the size of each file.
    """

    def __init__(self) -> None:
        self._buckets: dict[str, tuple[pafs.FileSystem, bool]] = {}
        self._files: OrderedDict[str, pa.NativeFile] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, path: str, offset: int, size: int) -> bytes:
        """Read `size` bytes at `offset`, fewer at the end of the file.

        Raises:
            InputError: the file does not exist or cannot be read.

        """
        if "://" not in path or path.startswith("file:"):
            return files.read_range(path, offset, size)
        with files.read_errors(path):
            return filesystems.retry(lambda: bytes(self._open(path).read_at(size, offset)))

    def _open(self, path: str) -> pa.NativeFile:
        with self._lock:
            if path in self._files:
                self._files.move_to_end(path)
                return self._files[path]
        filesystem, inner = self._locate(path)
        file = filesystem.open_input_file(inner)
        with self._lock:
            self._files[path] = file
            if len(self._files) > _OPEN_FILES:
                self._files.popitem(last=False)
        return file

    def _locate(self, path: str) -> tuple[pafs.FileSystem, str]:
        """Return the file system of a bucket, opened once, and the path inside."""
        parts = urlsplit(path)
        bucket = f"{parts.scheme}://{parts.netloc}?{parts.query}"
        inner = unquote(f"{parts.netloc.rpartition('@')[2]}{parts.path}")
        if bucket not in self._buckets:
            filesystem, expected = files.open_filesystem(path)
            self._buckets[bucket] = filesystem, inner == expected
        filesystem, is_known_form = self._buckets[bucket]
        return (filesystem, inner) if is_known_form else files.open_filesystem(path)
