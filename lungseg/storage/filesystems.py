"""File systems behind storage: open, retry, list folders, read and write files."""

import logging
import os
import random
import re
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Literal, TypeVar

from lungseg.arrow import pafs
from lungseg.errors import InputError
from lungseg.storage.paths import parent_of

logger = logging.getLogger(__name__)

TEMPORARY_PREFIX = ".writing-"
"""Prefix of the names of files that are being written."""
_HIDDEN = re.compile(r"(^|/)\.")
_INTERNAL = re.compile(rf"{re.escape(TEMPORARY_PREFIX)}|\.shared-")  # temporary files of our own jobs
# How long requests to a busy or unreachable bucket are retried. A server that accepts connections but never responds
# fails after three attempts of _REQUEST_TIMEOUT_S. So any unavailable bucket is reported in less than a minute.
_RETRY_PERIOD_S = 20.0
_REQUEST_TIMEOUT_S = 10.0
_CONNECT_TIMEOUT_S = 3.0
_FIRST_WAIT_S, _MAX_WAIT_S = 0.2, 3.0
# Temporary errors in messages of the AWS and Google libraries. Arrow reports INTERNAL_FAILURE for a 503 response whose
# body is longer than the requested range, and does not retry it.
_TEMPORARY_ERROR = re.compile(
    r"NETWORK_CONNECTION|SLOW_DOWN|SERVICE_UNAVAILABLE|INTERNAL_FAILURE|THROTTLING|REQUEST_TIMEOUT"
    r"|HTTP status (408|429|5\d\d)|SlowDown|Status\((UNAVAILABLE|DEADLINE_EXCEEDED|RESOURCE_EXHAUSTED)"
)
_Answer = TypeVar("_Answer")
WriteContent = Callable[[IO[bytes]], object]
"""Writes the content of a file to an open file."""


def open_uri(path: str) -> tuple[pafs.FileSystem, str]:
    """Return the file system of a path or URI, and the path inside that file system.

    Raises:
        ValueError: the path or URI is not valid.
        OSError: the region of the bucket cannot be determined.

    """
    if path.startswith(("gs://", "gcs://")) and "?" not in path:
        path = f"{path}?retry_limit_seconds={_RETRY_PERIOD_S:.0f}"  # the default is 15 minutes
    opened: tuple[pafs.FileSystem, str] = pafs.FileSystem.from_uri(
        path if "://" in path else Path(path).absolute().as_uri()
    )
    filesystem, inner = opened
    if isinstance(filesystem, pafs.S3FileSystem):
        # A URI cannot set timeouts, and by default each request to a server that never responds takes 100 s.
        _, (options, *_) = filesystem.__reduce__()
        limits = {"request_timeout": _REQUEST_TIMEOUT_S, "connect_timeout": _CONNECT_TIMEOUT_S}
        retries = pafs.AwsStandardS3RetryStrategy(max_attempts=3)
        filesystem = pafs.S3FileSystem(**{**options, **limits}, retry_strategy=retries)
    return filesystem, inner


def retry(request: Callable[[], _Answer]) -> _Answer:
    """Run a request, and retry it for a limited time while an object store is busy or unreachable.

    Errors of a disk are not retried.

    Raises:
        OSError: the last error.

    """
    started, wait = time.monotonic(), _FIRST_WAIT_S
    while True:
        try:
            return request()
        except OSError as error:
            if not is_temporary(error) or time.monotonic() - started + wait > _RETRY_PERIOD_S:
                raise
        time.sleep(wait * random.uniform(0.5, 1.0))  # noqa: S311  # spread the retries of many clients
        wait = min(2 * wait, _MAX_WAIT_S)


def is_temporary(error: Exception) -> bool:
    """Return whether an error of an object store may be temporary; an error of a disk is not."""
    return isinstance(error, OSError) and error.errno is None and bool(_TEMPORARY_ERROR.search(str(error)))


def list_files_below(filesystem: pafs.FileSystem, folder: str) -> list[str]:
    """List all files below a folder as relative paths, unsorted, without hidden files.

    On a disk, links are followed, except links to a parent folder: each file in a loop is listed once. Broken links are
    listed; opening one raises an error. Pipes, sockets and devices are skipped with a warning, because opening one may
    block forever.

    Raises:
        InputError: a folder cannot be listed, or a name is not UTF-8.

    """
    if not isinstance(filesystem, pafs.LocalFileSystem):
        return _list_store(filesystem, folder, pafs.FileType.File)
    files: list[str] = []
    special: list[str] = []
    hidden: list[str] = []
    pending: list[tuple[str, tuple[str, ...]]] = [("", (os.path.realpath(folder),))]
    while pending:
        prefix, parents = pending.pop()
        for entry in _entries(os.path.join(folder, prefix), hidden):
            path, kind = prefix + entry.name, _kind(entry)
            if kind == "file":
                files.append(path)
            elif kind == "special":
                special.append(path)
            elif (real := _real_path(entry, parents[-1])) not in parents:
                pending.append((f"{path}/", (*parents, real)))
    _log_hidden(folder, hidden)
    if special:
        logger.warning("%s: skipped %d pipes, sockets or devices (first: %s)", folder, len(special), min(special))
    return files


def list_subfolders(filesystem: pafs.FileSystem, folder: str) -> list[str]:
    """List the names of the direct subfolders of a folder, unsorted, without hidden ones.

    On a disk this includes links to folders, except links to this folder or one of its parents.

    Raises:
        InputError: the folder cannot be listed, or a name is not UTF-8.

    """
    if not isinstance(filesystem, pafs.LocalFileSystem):
        return _list_store(filesystem, folder, pafs.FileType.Directory)
    real = os.path.realpath(folder)
    folders = [entry for entry in _entries(folder) if _kind(entry) == "folder"]
    return [entry.name for entry in folders if not f"{real}/".startswith(os.path.join(_real_path(entry, real), ""))]


def printable(path: str) -> str:
    r"""Return a path with each byte that is not UTF-8 written as `\xff`."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _list_store(filesystem: pafs.FileSystem, folder: str, kind: pafs.FileType) -> list[str]:
    """List the files below a folder of an object store, or its direct subfolders."""
    # In Google Cloud Storage, Arrow lists only folders that have an object of their own. gsutil creates none.
    from_files = kind == pafs.FileType.Directory and filesystem.type_name == "gcs"
    listed = pafs.FileType.File if from_files else kind
    selector = pafs.FileSelector(folder, recursive=listed == pafs.FileType.File)
    infos = retry(lambda: filesystem.get_file_info(selector))
    paths = [info.path[len(folder) :].lstrip("/") for info in infos if info.type == listed]
    if from_files:
        paths = list(dict.fromkeys(path.split("/")[0] for path in paths if "/" in path))
    if kind == pafs.FileType.File:
        _log_hidden(folder, [path.lstrip("/") for path in paths if _HIDDEN.search(path)])
    return [path for path in paths if not _HIDDEN.search(path)]


def _log_hidden(folder: str, hidden: Sequence[str]) -> None:
    names = [name for name in hidden if not _INTERNAL.match(name)]
    if names:
        logger.info("%s: skipped %d hidden files and folders (first: %s)", folder, len(names), printable(min(names)))


def _entries(folder: str, hidden: list[str] | None = None) -> Iterator[os.DirEntry[str]]:
    """Yield the entries of a folder, except hidden ones and lost+found, which only root can read.

    hidden: receives the names of the hidden entries.
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
            f"{printable(entry.path)}: the name is not UTF-8: rename it (convmv can rename a complete archive)"
        ) from None


def _kind(entry: os.DirEntry[str]) -> Literal["folder", "file", "special"]:
    """Return the kind of an entry or of its link target; most entries need no extra stat."""
    try:
        if entry.is_dir():
            return "folder"
        return "special" if not entry.is_file() and os.path.exists(entry.path) else "file"
    except OSError:  # such as a link to itself; opening it raises the same error
        return "file"


def _real_path(entry: os.DirEntry[str], parent: str) -> str:
    """Return the path of a folder with links resolved; only links need disk access."""
    return os.path.realpath(entry.path) if entry.is_symlink() else os.path.join(parent, entry.name)


def read_file(path: str, offset: int, size: int | None) -> bytes:
    """Read a file from a disk. Arrow is slower here: it takes longer to open a small file than to read it.

    Raises:
        InputError: the path is a pipe, socket or device.
        OSError: the file cannot be read.

    """
    # Without O_NONBLOCK, opening a pipe may block forever.
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise InputError(f"{path}: a pipe, socket or device, expected a file: remove it from the archive")
        file.seek(offset)
        # A damaged index may state any size: no more memory is reserved than the file has bytes.
        rest = os.fstat(file.fileno()).st_size - offset
        return file.read() if size is None else file.read(max(0, min(size, rest)))


def stat_file(path: str) -> tuple[int, int] | None:
    """Return size in bytes and modification time in ns of a file on a disk, ten times as fast as Arrow.

    None where the file does not exist or its folder cannot be accessed; opening it then raises an error.
    """
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return (status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else None


def read_object(filesystem: pafs.FileSystem, inner: str, offset: int, size: int | None) -> bytes:
    """Read `size` bytes at `offset` of an object in a bucket; without a size, up to the end."""
    with filesystem.open_input_file(inner) as file:
        return bytes(file.read() if size is None else file.read_at(size, offset))


def write_object(filesystem: pafs.FileSystem, inner: str, write: WriteContent) -> None:
    """Write an object to a bucket; it becomes visible when it is complete."""
    filesystem.create_dir(parent_of(inner), recursive=True)
    with filesystem.open_output_stream(inner) as stream:
        write(stream)


def replace_file(path: str, write: WriteContent) -> None:
    """Write a temporary file on a disk, sync it and rename it to its final name."""
    descriptor, temporary = tempfile.mkstemp(prefix=TEMPORARY_PREFIX, dir=parent_of(path))
    try:
        with os.fdopen(descriptor, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
