"""Paths and URIs of files and folders, without any I/O."""

import os
import re
from pathlib import Path

from lungseg.errors import InputError

_ONE_SLASH = re.compile(r"(s3|gs|gcs|file|https?):/(?!/)")


def resolve(path: str) -> str:
    """Return an absolute path; URIs stay unchanged.

    A relative path starts at the working folder. In a job submitted to Ray the working folder is a temporary copy, so
    there it starts at ~/lungseg: a second submission of the same command finds the results of the first.

    Raises:
        InputError: the path is empty, or a URI lacks a slash or has options after a question mark.

    """
    if not path.strip():
        raise InputError("an empty path: pass a folder (is a shell variable empty?)")
    if _ONE_SLASH.match(path):
        raise InputError(f"{path}: one slash, expected two: {path.replace(':/', '://', 1)}")
    if "://" in path:
        if "?" in path:  # joined names would become part of the options
            raise InputError(
                f"{path}: options after a question mark are not supported: set AWS_ENDPOINT_URL, AWS_REGION and "
                "others in the environment, and write %3F for a question mark in a name"
            )
        return path.rstrip("/")
    expanded = Path(path).expanduser()
    if expanded.is_absolute():
        return os.path.normpath(expanded)
    base = Path.home() / "lungseg" if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ else Path.cwd()
    return os.path.normpath(base / expanded)


def join(folder: str, *names: str) -> str:
    """Join names to a folder; refuse absolute names and `..`, which could leave the folder, and null characters."""
    for name in names:
        if "\0" in name:
            shown = name.replace("\0", "\\0")
            raise InputError(f"{shown}: no file can have a null character in its name: rename it")
        if name.startswith("/") or ".." in name.split("/"):
            raise InputError(f"{name}: this name leaves its folder {folder}: rename it")
    return "/".join([folder.rstrip("/"), *names])


def is_inside(path: str, folder: str) -> bool:
    """Return whether a path is a folder or below it; both as returned by `resolve`."""
    return f"{path}/".startswith(f"{folder}/")


def name_of(path: str) -> str:
    """Return the last component of a path."""
    return path.rstrip("/").rsplit("/", 1)[-1]


def parent_of(path: str) -> str:
    """Return a path without its last component."""
    return path.rstrip("/").rsplit("/", 1)[0]
