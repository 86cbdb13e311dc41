"""Names of files and folders, local or in a bucket; `storage` gives them on."""

import os
import re
from pathlib import Path

from lungseg.errors import InputError

_ONE_SLASH = re.compile(r"(s3|gs|gcs|file|https?):/(?!/)")


def resolve(path: str) -> str:
    """Make a path absolute; leave a URI as it is.

    A relative path means the folder that the user stands in. In a job submitted to Ray that folder is a copy which Ray
    throws away, so there it means ~/lungseg: the same command submitted again finds what the first one left.

    Raises:
        InputError: there is none (as of an empty shell variable), or a URI lacks a slash or carries options.

    """
    if not path.strip():
        raise InputError("an empty path: name a folder (was a shell variable empty?)")
    if _ONE_SLASH.match(path):
        raise InputError(f"{path}: one slash, expected two: {path.replace(':/', '://', 1)}")
    if "://" in path:
        if "?" in path:  # what is written below it would be named by the options' end, all of it alike
            raise InputError(
                f"{path}: options behind a question mark, expected none: set AWS_ENDPOINT_URL, AWS_REGION and the like "
                "in the environment, and write %3F for a question mark in a name"
            )
        return path.rstrip("/")
    expanded = Path(path).expanduser()
    if expanded.is_absolute():
        return os.path.normpath(expanded)
    base = Path.home() / "lungseg" if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ else Path.cwd()
    return os.path.normpath(base / expanded)


def join(folder: str, *names: str) -> str:
    """Name something inside a folder; `..` and absolute names are refused, as they could climb out of it."""
    for name in names:
        if name.startswith("/") or ".." in name.split("/"):
            raise InputError(f"{name}: a name that leaves its folder {folder}: rename it")
    return "/".join([folder.rstrip("/"), *names])


def is_inside(path: str, folder: str) -> bool:
    """Whether a path is a folder, or anything below it; both as `resolve` gives them."""
    return f"{path}/".startswith(f"{folder}/")


def name_of(path: str) -> str:
    """Last part of a path."""
    return path.rstrip("/").rsplit("/", 1)[-1]


def parent_of(path: str) -> str:
    """All but the last part of a path."""
    return path.rstrip("/").rsplit("/", 1)[0]
