"""Find files that a listing names in another Unicode form than the file system, such as ü in one or two characters."""

from collections import defaultdict
from collections.abc import Iterable
from urllib.parse import quote, unquote

from lungseg import storage
from lungseg.errors import InputError
from lungseg.ingest.file_names import normal_form


def stored_names(uris: Iterable[str], listed_folders: dict[str, dict[str, str]]) -> dict[str, str]:
    """Return the stored name of each listed file that exists only under an equal name in another Unicode form.

    Names of ASCII characters have one form, so only other names cost a look-up. A file that does not exist in any form
    is left out. listed_folders: stored names of folders that earlier calls listed; grows.
    """
    missing: defaultdict[str, list[str]] = defaultdict(list)
    for uri in dict.fromkeys(uris):
        if not _plain(uri).isascii() and storage.try_stat(uri) is None:
            missing[_plain_folder(uri)].append(uri)
    stored_by_listed = {}
    for folder, names in missing.items():
        if folder not in listed_folders:
            listed_folders[folder] = {_normal(path): path for path in _list(folder)}
        stored = listed_folders[folder]
        stored_by_listed.update({name: stored[_normal(name)] for name in names if _normal(name) in stored})
    return stored_by_listed


def _plain_folder(uri: str) -> str:
    """Return the innermost folder above a file whose path has only ASCII characters."""
    folders = uri.split("/")[:-1]
    depth = next((i for i, name in enumerate(folders) if not _plain(name, uri).isascii()), len(folders))
    return "/".join(folders[:depth])


def _list(folder: str) -> list[str]:
    try:
        return storage.list_files(folder)
    except InputError:  # the missing files are reported one by one
        return []


def _plain(name: str, uri: str = "") -> str:
    return unquote(name) if "://" in (uri or name) else name


def _normal(uri: str) -> str:
    """Return a key that is equal for all forms of a URI."""
    return quote(normal_form(unquote(uri))) if "://" in uri else normal_form(uri)
