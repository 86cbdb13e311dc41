"""The file systems behind storage: opened, asked again while busy, folders listed with nothing passed over silently."""

import logging
import os
import random
import re
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal, TypeVar

import pyarrow.fs as pafs

from lungseg.errors import InputError
from lungseg.storage.paths import parent_of

logger = logging.getLogger(__name__)

TEMPORARY_PREFIX = ".writing-"
"""How the names of files begin that are being written."""
_HIDDEN = re.compile(r"(^|/)\.")
_OWN = re.compile(rf"{re.escape(TEMPORARY_PREFIX)}|\.shared-")  # of files that jobs make for a moment
# For how long a bucket that is busy or out of reach is asked again. One that takes connections and says nothing is told
# after three attempts of _SILENT_S: so a bucket that is gone is told in less than a minute, whichever way it is gone.
_PATIENCE_S = 20.0
_SILENT_S = 10.0
_CONNECT_S = 3.0
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.2, 3.0
# In what the libraries of AWS and of Google say, all that may pass by itself. INTERNAL_FAILURE is Arrow's word for a
# 503 whose text is longer than the range that was to be read: it has no room for it, and does not ask again.
_PASSES = re.compile(
    r"NETWORK_CONNECTION|SLOW_DOWN|SERVICE_UNAVAILABLE|INTERNAL_FAILURE|THROTTLING|REQUEST_TIMEOUT"
    r"|HTTP status (408|429|5\d\d)|SlowDown|Status\((UNAVAILABLE|DEADLINE_EXCEEDED|RESOURCE_EXHAUSTED)"
)
_Answer = TypeVar("_Answer")


def open_uri(path: str) -> tuple[pafs.FileSystem, str]:
    """Split a path or URI into its file system and the path there.

    Raises:
        ValueError: it is none that could be opened.
        OSError: where its bucket lies cannot be found out.

    """
    if path.startswith(("gs://", "gcs://")) and "?" not in path:
        path = f"{path}?retry_limit_seconds={_PATIENCE_S:.0f}"  # by itself it would try for a quarter of an hour
    opened: tuple[pafs.FileSystem, str] = pafs.FileSystem.from_uri(
        path if "://" in path else Path(path).absolute().as_uri()
    )
    filesystem, inner = opened
    if isinstance(filesystem, pafs.S3FileSystem):
        # A URI has no word for patience: by itself it would ask a server that says nothing for 100 s, each time.
        _, (options, *_) = filesystem.__reduce__()
        limits = {"request_timeout": _SILENT_S, "connect_timeout": _CONNECT_S}
        retries = pafs.AwsStandardS3RetryStrategy(max_attempts=3)
        filesystem = pafs.S3FileSystem(**{**options, **limits}, retry_strategy=retries)
    return filesystem, inner


def retry(request: Callable[[], _Answer]) -> _Answer:
    """Ask a store for something; while it is busy or out of reach, again, for a while. A disk is asked once.

    Raises:
        OSError: what the last answer was.

    """
    began, wait = time.monotonic(), _FIRST_WAIT_S
    while True:
        try:
            return request()
        except OSError as error:
            if not is_temporary(error) or time.monotonic() - began + wait > _PATIENCE_S:
                raise
        time.sleep(wait * random.uniform(0.5, 1.0))  # noqa: S311  # so that many who were refused do not return at once
        wait = min(2 * wait, _LONGEST_WAIT_S)


def is_temporary(error: Exception) -> bool:
    """Whether a store's error may pass by itself; a disk's does not."""
    return isinstance(error, OSError) and error.errno is None and bool(_PASSES.search(str(error)))


def list_files_below(filesystem: pafs.FileSystem, folder: str) -> list[str]:
    """List the files below a folder, as paths below it, in no order, without the hidden.

    On a disk links are followed, but for one that leads back to a folder on the way to it: a loop gives each file once.
    A link to nothing is listed: whoever opens it says so. Pipes, sockets and devices are left out aloud: opening one
    may wait for ever.

    Raises:
        InputError: a folder may not be listed, or a name is not UTF-8.

    """
    if not isinstance(filesystem, pafs.LocalFileSystem):
        return _in_store(filesystem, folder, pafs.FileType.File)
    found: list[str] = []
    others: list[str] = []
    hidden: list[str] = []
    left: list[tuple[str, tuple[str, ...]]] = [("", (os.path.realpath(folder),))]
    while left:
        prefix, way = left.pop()
        for entry in _entries(os.path.join(folder, prefix), hidden):
            path, kind = prefix + entry.name, _kind(entry)
            if kind == "file":
                found.append(path)
            elif kind == "other":
                others.append(path)
            elif (real := _real(entry, way[-1])) not in way:
                left.append((f"{path}/", (*way, real)))
    _tell_hidden(folder, hidden)
    if others:
        logger.warning("%s: %d pipes, sockets or devices passed over (first: %s)", folder, len(others), min(others))
    return found


def list_subfolders(filesystem: pafs.FileSystem, folder: str) -> list[str]:
    """List the names of the folders directly in a folder, in no order, without the hidden.

    On a disk a link to a folder is one, but for one that leads back to this folder or above; a link to nothing is none.

    Raises:
        InputError: the folder may not be listed, or a name is not UTF-8.

    """
    if not isinstance(filesystem, pafs.LocalFileSystem):
        return _in_store(filesystem, folder, pafs.FileType.Directory)
    real = os.path.realpath(folder)
    found = [entry for entry in _entries(folder) if _kind(entry) == "folder"]
    return [entry.name for entry in found if not f"{real}/".startswith(os.path.join(_real(entry, real), ""))]


def printable(path: str) -> str:
    r"""Write a path so that it can be printed and stored: a byte that is not UTF-8 becomes `\xff`."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _in_store(filesystem: pafs.FileSystem, folder: str, kind: pafs.FileType) -> list[str]:
    """Name the files below a folder, or the folders directly in it."""
    # In Google's store Arrow lists no folder that has no object of its own, as those have none that gsutil copies.
    unlisted = kind == pafs.FileType.Directory and filesystem.type_name == "gcs"
    listed = pafs.FileType.File if unlisted else kind
    selector = pafs.FileSelector(folder, recursive=listed == pafs.FileType.File)
    infos = retry(lambda: filesystem.get_file_info(selector))
    paths = [info.path[len(folder) :].lstrip("/") for info in infos if info.type == listed]
    if unlisted:
        paths = list(dict.fromkeys(path.split("/")[0] for path in paths if "/" in path))
    if kind == pafs.FileType.File:
        _tell_hidden(folder, [path.lstrip("/") for path in paths if _HIDDEN.search(path)])
    return [path for path in paths if not _HIDDEN.search(path)]


def _tell_hidden(folder: str, hidden: Sequence[str]) -> None:
    names = [name for name in hidden if not _OWN.match(name)]
    if names:
        logger.info(
            "%s: %d hidden files and folders passed over (first: %s)", folder, len(names), printable(min(names))
        )


def _entries(folder: str, hidden: list[str] | None = None) -> Iterator[os.DirEntry[str]]:
    """Give what a folder holds but for the hidden, and for what file systems keep in lost+found, which is root's.

    The names of the hidden are added to `hidden`.
    """
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    if hidden is not None:
                        hidden.append(entry.name)
                elif entry.name != "lost+found":
                    _check_name(entry)
                    yield entry
    except OSError as error:
        is_forbidden = isinstance(error, PermissionError)
        advice = "give read and execute rights" if is_forbidden else "check the disk"
        raise InputError(
            f"{printable(os.path.normpath(folder))}: cannot list this folder ({error.strerror}): "
            f"{advice}, or move it out of the archive"
        ) from None


def _check_name(entry: os.DirEntry[str]) -> None:
    try:
        entry.name.encode()
    except UnicodeEncodeError:
        raise InputError(
            f"{printable(entry.path)}: a name that is not UTF-8: rename it (convmv renames all of an archive)"
        ) from None


def _kind(entry: os.DirEntry[str]) -> Literal["folder", "file", "other"]:
    """Say what an entry is, or what its link leads to; mostly the folder itself has told, and no stat is needed."""
    try:
        if entry.is_dir():
            return "folder"
        return "other" if not entry.is_file() and os.path.exists(entry.path) else "file"
    except OSError:  # what bars this look, as a link to itself does, bars the opening too, which says why
        return "file"


def _real(entry: os.DirEntry[str], parent: str) -> str:
    """Name a folder by the way without links; only a link needs the disk for that."""
    return os.path.realpath(entry.path) if entry.is_symlink() else os.path.join(parent, entry.name)


def read_file(path: str, offset: int, size: int | None) -> bytes:
    """Read a file of a disk, without Arrow, which takes longer to open a small file than to read it.

    Raises:
        InputError: it is no file but a pipe, socket or device.
        OSError: it cannot be read.

    """
    # Without this flag, to open a pipe may wait for ever.
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise InputError(f"{path}: a pipe, socket or device, expected a file: take it out")
        file.seek(offset)
        return file.read(size)


def stat_file(path: str) -> tuple[int, int] | None:
    """Size in bytes and time of change in ns of a file of a disk, without Arrow, which takes ten times as long.

    None where there is no file, and where it cannot be looked at: whoever opens it says why.
    """
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return (found.st_size, found.st_mtime_ns) if stat.S_ISREG(found.st_mode) else None


def read_object(filesystem: pafs.FileSystem, inner: str, offset: int, size: int | None) -> bytes:
    """Read `size` bytes at `offset` of a bucket's object, all of them with no size."""
    with filesystem.open_input_file(inner) as file:
        return bytes(file.read() if size is None else file.read_at(size, offset))


def write_object(filesystem: pafs.FileSystem, inner: str, content: bytes) -> None:
    """Write a bucket's object, which shows only once it is whole."""
    filesystem.create_dir(parent_of(inner), recursive=True)
    with filesystem.open_output_stream(inner) as stream:
        stream.write(content)


def replace_file(path: str, content: bytes) -> None:
    """Write a file of a disk under another name, and give it its own once it is whole and safe."""
    descriptor, temporary = tempfile.mkstemp(prefix=TEMPORARY_PREFIX, dir=parent_of(path))
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
