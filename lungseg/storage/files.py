"""Files at local paths, s3:// and gs://, through pyarrow.fs. An incomplete file never has its final name."""

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from lungseg.arrow import pafs
from lungseg.errors import InputError, first_line
from lungseg.storage import filesystems
from lungseg.storage.paths import parent_of

_LOCAL = pafs.LocalFileSystem()


def open_filesystem(path: str) -> tuple[pafs.FileSystem, str]:
    """Return the file system of a path or URI, and the path inside that file system.

    Raises:
        InputError: the scheme is unknown or the bucket cannot be reached.

    """
    try:
        with _io_errors_as_input_errors(path):
            return filesystems.open_uri(path)
    except ValueError as error:
        raise InputError(
            f"{path}: not a valid path or URI ({first_line(error)}): pass a local path, s3:// or gs://"
        ) from None


def list_files(folder: str, suffixes: Iterable[str] = ()) -> list[str]:
    """List all files below a folder, sorted, except hidden files and files in hidden folders.

    suffixes: keep only names with one of these endings, in any case.

    Raises:
        InputError: the folder does not exist, it or a subfolder cannot be listed, or a name is not UTF-8.

    """
    filesystem, inner, is_present = _open_folder(folder)
    if not is_present:
        raise InputError(f"{folder}: no such folder: check the path")
    endings = tuple(suffixes) or ("",)
    with _io_errors_as_input_errors(folder):
        paths = filesystems.list_files_below(filesystem, inner)
    return sorted(_full_path(folder, path) for path in paths if path.lower().endswith(endings))


def list_folders(folder: str) -> list[str]:
    """List the direct subfolders of a folder, sorted, without hidden ones; empty where the folder does not exist.

    Raises:
        InputError: the path is a file, cannot be listed, or a name in it is not UTF-8.

    """
    filesystem, inner, is_present = _open_folder(folder)
    with _io_errors_as_input_errors(folder):
        names = filesystems.list_subfolders(filesystem, inner) if is_present else []
        return sorted(_full_path(folder, name) for name in names)


def _open_folder(folder: str) -> tuple[pafs.FileSystem, str, bool]:
    """Return the file system of a folder, its path inside, and whether it exists."""
    filesystem, inner, kind = _file_type(folder)
    if kind not in (pafs.FileType.Directory, pafs.FileType.NotFound):
        raise InputError(f"{folder}: a file, expected a folder: pass its parent folder")
    return filesystem, inner, kind == pafs.FileType.Directory


def _full_path(folder: str, relative: str) -> str:
    """Join a folder and a listed name; in a URI, spaces and other special characters are quoted."""
    return f"{folder.rstrip('/')}/{quote(relative) if '://' in folder else relative}"


def exists(path: str) -> bool:
    """Return whether a file or folder exists."""
    return bool(_file_type(path)[2] != pafs.FileType.NotFound)


def _file_type(path: str) -> tuple[pafs.FileSystem, str, pafs.FileType]:
    """Return the file system of a path, the path inside, and its file type."""
    filesystem, inner = open_filesystem(path)
    if "\0" in inner:
        raise InputError(f"{path}: a path with a zero byte, which no file can have: the file that names it is damaged")
    with _io_errors_as_input_errors(path):
        return filesystem, inner, filesystems.retry(lambda: filesystem.get_file_info(inner)).type


@contextlib.contextmanager
def _io_errors_as_input_errors(path: str) -> Iterator[None]:
    """Convert I/O errors to InputError. An unreachable disk or bucket is never reported as a missing file."""
    try:
        yield
    except PermissionError:
        raise InputError(
            f"{path}: no permission to enter a parent folder: give execute rights on its parent folders"
        ) from None
    except OSError as error:
        if filesystems.is_temporary(error):
            raise _unavailable(path, error) from None
        if error.errno == errno.ENAMETOOLONG:
            raise _too_long(path) from None
        if error.errno is not None:
            raise InputError(f"{path}: the disk does not answer ({os.strerror(error.errno)}): check the disk") from None
        raise InputError(
            f"{path}: the bucket refuses access ({first_line(error)}): check its name, your keys and their rights"
        ) from None


def _too_long(path: str) -> InputError:
    return InputError(f"{path}: the path or a name in it is too long: choose a folder with a shorter path")


def _unavailable(path: str, error: Exception) -> InputError:
    return InputError(f"{path}: the bucket does not answer ({first_line(error)}): try again")


def stat(path: str) -> tuple[int, int]:
    """Return the size in bytes and the modification time in ns of a file.

    Raises:
        InputError: the file does not exist, or a bucket does not answer.

    """
    size_and_time = try_stat(path)
    if size_and_time is None:
        raise InputError(f"{path}: no such file: check the path")
    return size_and_time


def try_stat(path: str) -> tuple[int, int] | None:
    """Return the size in bytes and the modification time in ns of a file, or None where it does not exist.

    Raises:
        InputError: a bucket does not answer, so whether the file exists is unknown.

    """
    try:
        filesystem, inner = open_filesystem(path) if "://" in path else (_LOCAL, path)
    except InputError as error:
        if isinstance(error.__context__, OSError):  # the region of the bucket cannot be determined
            raise
        return None
    if isinstance(filesystem, pafs.LocalFileSystem):
        return filesystems.stat_file(inner)
    try:
        with _io_errors_as_input_errors(path):
            return _stat(filesystems.retry(lambda: filesystem.get_file_info(inner)))
    except ValueError:
        return None


def list_stats(folder: str, recursive: bool = True) -> dict[str, tuple[int, int]]:
    """Return size in bytes and modification time in ns of all files below a folder of a bucket, by path.

    recursive: also list the files in its subfolders.

    Raises:
        InputError: the bucket does not answer.

    """
    filesystem, inner, is_present = _open_folder(folder)
    if not is_present:
        return {}
    with _io_errors_as_input_errors(folder):
        infos = filesystems.retry(lambda: filesystem.get_file_info(pafs.FileSelector(inner, recursive=recursive)))
    stats = {_full_path(folder, info.path[len(inner) :].lstrip("/")): _stat(info) for info in infos}
    return {path: stat for path, stat in stats.items() if stat is not None}


def _stat(info: pafs.FileInfo) -> tuple[int, int] | None:
    return (int(info.size), int(info.mtime_ns or 0)) if info.type == pafs.FileType.File else None


def read_bytes(path: str) -> bytes:
    """Read a file.

    Raises:
        InputError: the file does not exist or cannot be read.

    """
    return read_range(path, 0, None)


def read_range(path: str, offset: int, size: int | None) -> bytes:
    """Read `size` bytes at `offset`, fewer at the end of the file; without a size, up to the end.

    Raises:
        InputError: the file does not exist or cannot be read.

    """
    filesystem, inner = open_filesystem(path) if "://" in path else (_LOCAL, path)
    is_local = isinstance(filesystem, pafs.LocalFileSystem)
    with read_errors(path, inner if is_local else ""):
        if is_local:
            return filesystems.read_file(inner, offset, size)
        return filesystems.retry(lambda: filesystems.read_object(filesystem, inner, offset, size))


@contextlib.contextmanager
def read_errors(path: str, local_path: str = "") -> Iterator[None]:
    """Convert the errors of a read to InputError; local_path: of a file on a disk."""
    try:
        yield
    except (OSError, ValueError) as error:
        if filesystems.is_temporary(error):
            raise _unavailable(path, error) from None
        cause = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else first_line(error)
        if local_path and os.path.islink(local_path):
            cause = f"a link to {filesystems.printable(os.readlink(local_path))}: {cause}"
        raise InputError(
            f"{path}: cannot be read ({cause}): check that it exists and that you have read rights"
        ) from None


def write_bytes(path: str, content: bytes) -> None:
    """Write a file atomically: at any moment the path has the complete old content, the complete new content or none.

    On a disk: a temporary file in the same folder, fsync, rename. An object store shows an object once it is complete.

    Raises:
        InputError: it cannot be written: disk full, no write rights, or a parent is a file.

    """
    write_stream(path, lambda file: file.write(content))


def write_stream(path: str, write: filesystems.WriteContent) -> None:
    """Write a file as `write_bytes` does, without its whole content in memory; `write` may be called again.

    Raises:
        InputError: it cannot be written.

    """
    filesystem, inner = open_filesystem(path)
    is_local = isinstance(filesystem, pafs.LocalFileSystem)
    try:
        if is_local:
            filesystem.create_dir(parent_of(inner), recursive=True)
            filesystems.replace_file(inner, write)
        else:
            filesystems.retry(lambda: filesystems.write_object(filesystem, inner, write))
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise _too_long(path) from None
        advice = "free disk space" if is_local else "check the bucket's name, your keys and their rights"
        raise InputError(
            f"{path}: cannot be written ({first_line(error)}): {advice}, or choose another folder"
        ) from error


def delete_unfinished(folder: str) -> None:
    """Delete temporary files that a killed process left below a folder; no other process may be writing there."""
    if "://" not in folder:
        for path in Path(folder).rglob(f"{filesystems.TEMPORARY_PREFIX}*"):
            path.unlink(missing_ok=True)


def delete(path: str) -> None:
    """Delete a file, or a folder with its content; do nothing where the path does not exist."""
    filesystem, inner, kind = _file_type(path)
    calls = {pafs.FileType.Directory: filesystem.delete_dir, pafs.FileType.File: filesystem.delete_file}
    # Already deleted: by an earlier request whose response was lost, or by another process.
    with _io_errors_as_input_errors(path), contextlib.suppress(FileNotFoundError):
        if kind in calls:
            filesystems.retry(lambda: calls[kind](inner))


def digest_bytes(content: bytes) -> str:
    """Return the SHA-256 as hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def digest(value: Any) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of a JSON value; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
