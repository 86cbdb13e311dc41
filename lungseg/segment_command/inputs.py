"""From the paths on the command line to the X-rays to segment, each with a label and a name for its output."""

import fnmatch
import glob
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from lungseg import storage
from lungseg.errors import InputError
from lungseg.imaging.codecs import SUFFIXES
from lungseg.ingest import file_names
from lungseg.ingest.reason_codes import Note, reject
from lungseg.ingest.sources.mask_matching import group_by_dataset
from lungseg.plurals import counted
from lungseg.schema import Record
from lungseg.segment_command import zip_archives
from lungseg.segment_command.output_names import safe_path, unique_paths

logger = logging.getLogger(__name__)

RUN_FILE = "segment.json"
"""Name of the file that marks a folder as an output of this command; its pictures are never read as X-rays."""

_LISTINGS = (".csv", ".tsv", ".parquet")
_WILDCARDS = frozenset("*?[")


@dataclass(frozen=True)
class GivenImage:
    """An X-ray to segment. label: its file as the user knows it. name: path of its output files without suffix."""

    record: Record
    label: str
    name: str

    def relabel(self, message: str) -> str:
        """Name the file in a message as the user knows it; a member of a zip archive was read elsewhere."""
        return message.replace(self.record.image_uri, self.label)


@dataclass(frozen=True)
class _File:
    """label: the file as the user knows it. path: below the given folder. uri: where it can be read."""

    label: str
    path: str
    uri: str
    problem: str = ""


def list_images(paths: Sequence[str], out: str, unpacked: str) -> list[GivenImage]:
    """List the X-rays in files, folders, zip archives and patterns, each once.

    out: the output folder, whose files are left out. unpacked: folder for the members of zip archives.

    Raises:
        InputError: a path does not exist, or there is no image.

    """
    files: dict[str, _File] = {}
    for number, path in enumerate(paths):
        for file in _expand(path, out, f"{unpacked}/{number:03d}"):
            files.setdefault(file.uri, file)
    if not files:
        raise InputError(f"{' '.join(paths)}: no image in it; expected {', '.join(SUFFIXES)} files")
    names = unique_paths(safe_path(file_names.stem(file.path)) for file in files.values())
    return [_given(file, name) for file, name in zip(files.values(), names, strict=True)]


def _given(file: _File, name: str) -> GivenImage:
    image_id = file_names.image_id(name)
    dataset = file_names.dataset_name(storage.name_of(storage.parent_of(file.label)))
    record = Record(image_id, dataset, file.uri, patient_id=file_names.unnamed_patient(image_id, file.uri))
    if file.problem:
        record = reject(record, Note("undecodable", f"{storage.name_of(file.label)}: {file.problem}"))
    return GivenImage(record, file.label, name)


def _expand(word: str, out: str, unpacked: str) -> Iterator[_File]:
    """List the images that a word of the command line names.

    Raises:
        InputError: it names nothing.

    """
    if word == "-":
        raise InputError("-: an X-ray cannot be read from standard input: save it as a file, and pass its path")
    path = storage.resolve(word)
    if storage.try_stat(path) is not None:
        yield from _from_file(path, unpacked)
    elif storage.exists(path):
        yield from _from_folder(path, out)
    elif _WILDCARDS & set(word):
        matches = _matches(path)
        if not matches:
            raise InputError(f"{word}: no file matches this pattern: check it, * matches any characters in a name")
        for number, match in enumerate(matches):
            yield from _expand(match, out, f"{unpacked}/{number:04d}")
    else:
        raise InputError(f"{path}: no such file or folder: check the path")


def _matches(pattern: str) -> list[str]:
    """List the files and folders that match a pattern, without hidden ones; `**` matches folders at any depth."""
    if "://" not in pattern:
        return sorted(glob.glob(pattern, recursive=True))
    folder = pattern[: min(pattern.index(char) for char in _WILDCARDS if char in pattern)].rpartition("/")[0]
    return [uri for uri in storage.list_files(folder) if fnmatch.fnmatchcase(uri, pattern)]


def _from_file(path: str, unpacked: str) -> Iterator[_File]:
    if path.lower().endswith(_LISTINGS):
        raise InputError(f"{path}: a listing, not an X-ray: pass it to lungseg infer --archive")
    if zip_archives.is_zip(path):
        yield from _from_zip(path, unpacked)
    else:
        yield _File(path, storage.name_of(path), path)


def _from_folder(folder: str, out: str) -> Iterator[_File]:
    uris = storage.list_files(folder)
    own = {storage.parent_of(uri) for uri in uris if storage.name_of(uri) == RUN_FILE} | {out}
    foreign = [uri for uri in uris if not _is_below(uri, own)]
    images = _without_masks(folder, foreign)
    if not images:
        raise InputError(
            f"{folder}: no image in it; expected {', '.join(SUFFIXES)} files, or files without a suffix; folders named "
            "like masks do not count"
        )
    for uri in images:
        yield _File(uri, file_names.relative_path(folder, uri), uri)
    zips = sum(uri.lower().endswith(".zip") for uri in foreign)
    if zips:
        logger.warning(
            "%s: %s not opened: pass them by name", folder, counted(zips, "zip archive was", "zip archives were")
        )
    if len(foreign) < len(uris):
        logger.info("%s: left out %s of earlier results", folder, counted(len(uris) - len(foreign), "file"))


def _from_zip(path: str, unpacked: str) -> Iterator[_File]:
    uris = {f"{path}/{name}": name for name in zip_archives.image_names(path)}
    images = _without_masks(path, uris)
    if not images:
        raise InputError(f"{path}: no image in it; expected {', '.join(SUFFIXES)} files")
    names = [uris[uri] for uri in images]
    for member in zip_archives.unpack(path, names, unpacked):
        yield _File(f"{path}/{member.name}", member.name, member.path, member.problem)


def _without_masks(folder: str, uris: Iterable[str]) -> list[str]:
    """Return the images, sorted, without the files in folders that are named like masks."""
    paths = {uri: file_names.relative_path(folder, uri) for uri in uris}
    candidates = [
        uri for uri, path in paths.items() if file_names.is_image(path) and not file_names.is_system_file(path)
    ]
    groups = group_by_dataset(folder, candidates).values()
    same_name = [uri for group in groups for _, uri in group.same_name_images]
    images = sorted([*(uri for group in groups for uri in group.images.values()), *same_name])
    if len(images) < len(candidates):
        masks = counted(len(candidates) - len(images), "file that looks", "files that look")
        logger.info("%s: left out %s like masks by the name of the folder", folder, masks)
    return images


def _is_below(uri: str, folders: Iterable[str]) -> bool:
    return any(uri.startswith(f"{folder}/") for folder in folders)
