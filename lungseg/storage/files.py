"""Paths and URIs (local, s3://, gs://) behind pyarrow.fs; no torn file ever bears its final name."""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow.fs as pafs

from lungseg import __version__
from lungseg.errors import InputError, first_line
from lungseg.schema import SCHEMA, check_schema
from lungseg.storage import filesystems
from lungseg.storage.paths import parent_of

_HERE = pafs.LocalFileSystem()


def open_filesystem(path: str) -> tuple[pafs.FileSystem, str]:
    """Split a path or URI into its file system and the path there.

    Raises:
        InputError: the URI's scheme is not known or its bucket cannot be reached.

    """
    try:
        with _told(path):
            return filesystems.open_uri(path)
    except ValueError as error:
        raise InputError(
            f"{path}: not a path that can be opened ({first_line(error)}): pass a folder, s3:// or gs://"
        ) from None


def list_files(folder: str, suffixes: Iterable[str] = ()) -> list[str]:
    """List the files below a folder, sorted; hidden ones and those below hidden folders are left out.

    Raises:
        InputError: the folder is not there, it or one below it may not be listed, or a name is not UTF-8.

    """
    filesystem, inner, there = _open_folder(folder)
    if not there:
        raise InputError(f"{folder}: no such folder: check the path")
    endings = tuple(suffixes) or ("",)
    with _told(folder):
        paths = filesystems.list_files_below(filesystem, inner)
    return sorted(_inside(folder, path) for path in paths if path.lower().endswith(endings))


def list_folders(folder: str) -> list[str]:
    """List the folders directly below a folder, sorted, without hidden ones; nothing where it is not there.

    Raises:
        InputError: it is a file, may not be listed, or a name in it is not UTF-8.

    """
    filesystem, inner, there = _open_folder(folder)
    with _told(folder):
        return sorted(
            _inside(folder, name) for name in (filesystems.list_subfolders(filesystem, inner) if there else [])
        )


def _open_folder(folder: str) -> tuple[pafs.FileSystem, str, bool]:
    """Open a folder's file system and say whether the folder is there."""
    filesystem, inner, kind = _look(folder)
    if kind not in (pafs.FileType.Directory, pafs.FileType.NotFound):
        raise InputError(f"{folder}: a file, expected a folder: pass the folder that it is in")
    return filesystem, inner, kind == pafs.FileType.Directory


def _inside(folder: str, relative: str) -> str:
    """Name what a listing found; in a URI, spaces and the like are quoted."""
    return f"{folder.rstrip('/')}/{quote(relative) if '://' in folder else relative}"


def exists(path: str) -> bool:
    """Say whether a file or folder is there."""
    return bool(_look(path)[2] != pafs.FileType.NotFound)


def _look(path: str) -> tuple[pafs.FileSystem, str, pafs.FileType]:
    """Open a path's file system and say what is there."""
    filesystem, inner = open_filesystem(path)
    with _told(path):
        return filesystem, inner, filesystems.retry(lambda: filesystem.get_file_info(inner)).type


@contextlib.contextmanager
def _told(path: str) -> Iterator[None]:
    """Tell in one line why a disk or a bucket does not answer: that it does not is never taken for a missing file."""
    try:
        yield
    except PermissionError:
        raise InputError(f"{path}: in a folder that may not be entered: give execute rights to those above") from None
    except OSError as error:
        if filesystems.is_temporary(error):
            raise _unanswered(path, error) from None
        if error.errno is not None:
            raise InputError(f"{path}: the disk does not answer ({os.strerror(error.errno)}): mend it") from None
        raise InputError(
            f"{path}: the bucket refuses ({first_line(error)}): check its name, your keys and their rights"
        ) from None


def _unanswered(path: str, error: Exception) -> InputError:
    return InputError(f"{path}: the bucket does not answer ({first_line(error)}): try again")


def stat(path: str) -> tuple[int, int]:
    """Size in bytes and time of change in ns; what tells a changed file from the one that was planned with.

    Raises:
        InputError: there is no such file.

    """
    found = try_stat(path)
    if found is None:
        raise InputError(f"{path}: no such file: check the path")
    return found


def try_stat(path: str) -> tuple[int, int] | None:
    """Size in bytes and time of change in ns; None where there is no such file, and can be none of that name.

    Raises:
        InputError: a bucket does not answer: then nothing is known.

    """
    try:
        filesystem, inner = open_filesystem(path) if "://" in path else (_HERE, path)
    except InputError as error:
        if isinstance(error.__context__, OSError):  # where the bucket lies cannot be found out now
            raise
        return None
    if isinstance(filesystem, pafs.LocalFileSystem):
        return filesystems.stat_file(inner)
    try:
        with _told(path):
            return _stat(filesystems.retry(lambda: filesystem.get_file_info(inner)))
    except ValueError:
        return None


def list_stats(folder: str) -> dict[str, tuple[int, int]]:
    """Size in bytes and time of change in ns of all files below a bucket's folder, by path, as its listing tells them.

    Raises:
        InputError: the bucket does not answer.

    """
    filesystem, inner, there = _open_folder(folder)
    if not there:
        return {}
    with _told(folder):
        found = filesystems.retry(lambda: filesystem.get_file_info(pafs.FileSelector(inner, recursive=True)))
    stats = {_inside(folder, info.path[len(inner) :].lstrip("/")): _stat(info) for info in found}
    return {path: stat for path, stat in stats.items() if stat is not None}


def _stat(info: pafs.FileInfo) -> tuple[int, int] | None:
    return (int(info.size), int(info.mtime_ns or 0)) if info.type == pafs.FileType.File else None


def read_bytes(path: str) -> bytes:
    """Read a whole file.

    Raises:
        InputError: it is not there or cannot be read.

    """
    return read_range(path, 0, None)


def read_range(path: str, offset: int, size: int | None) -> bytes:
    """Read `size` bytes at `offset`, fewer where the file ends before; with no size, the whole file.

    Raises:
        InputError: it is not there or cannot be read.

    """
    filesystem, inner = open_filesystem(path) if "://" in path else (_HERE, path)
    local = isinstance(filesystem, pafs.LocalFileSystem)
    try:
        if local:
            return filesystems.read_file(inner, offset, size)
        return filesystems.retry(lambda: filesystems.read_object(filesystem, inner, offset, size))
    except (OSError, ValueError) as error:
        if filesystems.is_temporary(error):
            raise _unanswered(path, error) from None
        why = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else first_line(error)
        if local and os.path.islink(inner):
            why = f"a link to {filesystems.printable(os.readlink(inner))}: {why}"
        raise InputError(f"{path}: cannot be read ({why}): check that it is there and may be read") from None


def write_bytes(path: str, content: bytes) -> None:
    """Write a whole file, so that at any moment there is the old one, the new one or none.

    On a disk: a temporary file beside it, fsync, rename. An object store shows an object only once it is whole.

    Raises:
        InputError: it cannot be written: no room, no right, a file where a folder should be.

    """
    filesystem, inner = open_filesystem(path)
    local = isinstance(filesystem, pafs.LocalFileSystem)
    try:
        if local:
            filesystem.create_dir(parent_of(inner), recursive=True)
            filesystems.replace_file(inner, content)
        else:
            filesystems.retry(lambda: filesystems.write_object(filesystem, inner, content))
    except OSError as error:
        advice = "make room" if local else "check the bucket's name, your keys and their rights"
        raise InputError(f"{path}: cannot be written ({first_line(error)}): {advice}, or write elsewhere") from error


def delete_unfinished(folder: str) -> None:
    """Delete the temporary files below a folder that a killed process left behind; no one may be writing there."""
    if "://" not in folder:
        for path in Path(folder).rglob(f"{filesystems.TEMPORARY_PREFIX}*"):
            path.unlink(missing_ok=True)


def delete(path: str) -> None:
    """Delete a file or a folder with all in it; nothing happens where there is none."""
    filesystem, inner, kind = _look(path)
    calls = {pafs.FileType.Directory: filesystem.delete_dir, pafs.FileType.File: filesystem.delete_file}
    # Gone already: deleted by a request of ours whose answer was lost, or by somebody else.
    with _told(path), contextlib.suppress(FileNotFoundError):
        if kind in calls:
            filesystems.retry(lambda: calls[kind](inner))


def read_json(path: str, content: bytes | None = None) -> dict[str, Any]:
    """Read a JSON object that this schema wrote; `content` where its bytes were read before.

    Raises:
        InputError: it is not there, is no JSON object, or carries another schema's number.

    """
    try:
        value = json.loads(read_bytes(path) if content is None else content)
    except ValueError:
        raise InputError(f"{path}: not JSON: it was damaged; make it again") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: {type(value).__name__}, expected a JSON object: it was damaged; make it again")
    check_schema(value.get("schema"), path, str(value.get("lungseg_version") or ""))
    return value


def write_json(path: str, value: dict[str, Any], indent: int | None = 1) -> None:
    """Write a JSON object, with the schema and the version first; readable, or with no indent ten times faster."""
    content = {"schema": SCHEMA, "lungseg_version": __version__, **value}
    write_bytes(path, (json.dumps(content, indent=indent) + "\n").encode())


def has_valid_digest(value: dict[str, Any]) -> bool:
    """Whether a JSON object that carries its own digest as `checked` is as it was written."""
    outside = ("schema", "lungseg_version", "checked")
    return value.get("checked") == digest({name: it for name, it in value.items() if name not in outside})


def digest_bytes(content: bytes) -> str:
    """SHA-256 in hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def digest(value: Any) -> str:
    """Sixteen hexadecimal digits of the SHA-256 of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
