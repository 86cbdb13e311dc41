"""Files that are too large for the memory: read in pieces, opened, or mapped."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from lungseg.arrow import pa, pafs
from lungseg.errors import InputError, first_line
from lungseg.storage.files import open_filesystem, read_range

File = TypeVar("File")

_CHUNK_BYTES = 64 << 20


def map_file(path: str) -> pa.MemoryMappedFile:
    """Map a file into memory; one in a bucket is copied to a local file without a name first.

    Raises:
        InputError: the file does not exist or cannot be read.

    """
    return _open(path, pa.memory_map)


def open_large(path: str) -> pa.NativeFile:
    """Open a file for reading at any position; one in a bucket is copied to a local file without a name first.

    Raises:
        InputError: the file does not exist or cannot be read.

    """
    return _open(path, pa.OSFile)


def _open(path: str, opener: Callable[[str], File]) -> File:
    with local_file(path) as local:
        try:
            return opener(local)
        except OSError as error:
            raise InputError(
                f"{path}: cannot be read ({first_line(error)}): check that it exists and that you have read rights"
            ) from None


@contextmanager
def local_file(path: str) -> Iterator[str]:
    """Yield the path of a file on a disk, for one in a bucket that of a temporary copy.

    Raises:
        InputError: a file in a bucket does not exist or cannot be read.

    """
    filesystem, inner = open_filesystem(path)
    if isinstance(filesystem, pafs.LocalFileSystem):
        yield inner
        return
    with tempfile.NamedTemporaryFile(prefix="lungseg-") as copy:
        for chunk in read_chunks(path):
            copy.write(chunk)
        copy.flush()
        yield copy.name


def read_chunks(path: str) -> Iterator[bytes]:
    """Yield the content of a file in pieces of at most 64 MiB.

    Raises:
        InputError: the file does not exist or cannot be read.

    """
    offset = 0
    while chunk := read_range(path, offset, _CHUNK_BYTES):
        yield chunk
        offset += len(chunk)
