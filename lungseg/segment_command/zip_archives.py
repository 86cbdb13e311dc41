"""Unpack the X-rays of a zip archive. No member can leave its folder, and no archive can fill the disk."""

import os
import shutil
import time
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lungseg import storage
from lungseg.errors import InputError, first_line
from lungseg.ingest.file_names import is_image, is_system_file
from lungseg.segment_command.output_names import safe_name
from lungseg.storage.filesystems import TEMPORARY_PREFIX

MAX_MEMBER = 1 << 30
"""Largest file of an archive that is unpacked, bytes; the largest image that lungseg opens has half as many."""
USUAL_SIZE = 1 << 30
"""Bytes. An archive that unpacks to more than this, and to 200 times its own size, is an attack."""
_MAX_RATIO = 200
_ENCRYPTED = 0x1
_BLOCK = 1 << 20  # bytes


@dataclass(frozen=True)
class Member:
    """A file in a zip archive. name: its path there. path: where it lies unpacked. problem: why it does not, or ""."""

    name: str
    path: str
    problem: str = ""


def is_zip(path: str) -> bool:
    """Return whether a local file is a zip archive, by its name and content."""
    return path.lower().endswith(".zip") and "://" not in path and zipfile.is_zipfile(path)


def image_names(path: str) -> list[str]:
    """List the members of a zip archive that may be images, sorted, without those of operating systems.

    Raises:
        InputError: the archive is damaged, encrypted, or would unpack to an implausible size.

    """
    with _open(path) as archive:
        members = [info for info in archive.infolist() if _may_be_image(info)]
    if any(info.flag_bits & _ENCRYPTED for info in members):
        raise InputError(f"{path}: encrypted: unpack it with its password, and pass the folder")
    size, packed = sum(info.file_size for info in members), Path(path).stat().st_size
    if size > USUAL_SIZE and size > _MAX_RATIO * packed:
        raise InputError(
            f"{path}: {packed} bytes that state to contain {size}: not an archive of X-rays; unpack it yourself if so"
        )
    return sorted({info.filename for info in members})


def unpack(path: str, names: Sequence[str], folder: str) -> list[Member]:
    """Unpack members of a zip archive to numbered subfolders of a folder; those that cannot be read have a problem.

    Raises:
        InputError: there is not enough disk space, or the folder cannot be written.

    """
    with _open(path) as archive:
        infos = [archive.getinfo(name) for name in names]
        size = sum(info.file_size for info in infos if info.file_size <= MAX_MEMBER)
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
            if size > shutil.disk_usage(folder).free:
                raise InputError(f"{path}: unpacks to {size} bytes, more than are free below {folder}: free disk space")
            return [_unpack_member(archive, info, f"{folder}/{number:06d}") for number, info in enumerate(infos)]
        except OSError as error:
            raise InputError(f"{folder}: cannot be written ({error.strerror}): choose another -o") from None


def _open(path: str) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise InputError(f"{path}: not a readable zip archive ({first_line(error)}): download it again") from None


def _may_be_image(info: zipfile.ZipInfo) -> bool:
    # Members are unpacked under names of our own, so a path with `..` is harmless.
    path = "/".join(name for name in info.filename.split("/") if name not in (".", ".."))
    return not info.is_dir() and is_image(path) and not is_system_file(path)


def _unpack_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, folder: str) -> Member:
    path = f"{folder}/{safe_name(storage.name_of(info.filename))}"  # messages about the image name its file
    if info.file_size > MAX_MEMBER:
        return Member(info.filename, path, f"{info.file_size} bytes, at most {MAX_MEMBER} are read")
    partial = f"{folder}/{TEMPORARY_PREFIX}member"
    Path(folder).mkdir(exist_ok=True)
    try:
        with archive.open(info) as source, open(partial, "wb") as target:
            shutil.copyfileobj(source, target, _BLOCK)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        Path(partial).unlink(missing_ok=True)
        return Member(info.filename, path, f"damaged in the archive ({first_line(error)})")
    stamp = _time_of(info)
    os.utime(partial, (stamp, stamp))  # unpacked again, it counts as the same file
    os.replace(partial, path)
    return Member(info.filename, path)


def _time_of(info: zipfile.ZipInfo) -> float:
    try:
        return time.mktime((*info.date_time, 0, 0, -1))
    except (ValueError, OverflowError):
        return 0.0
