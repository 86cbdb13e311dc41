"""Choose the folder of Ray's files when a job starts Ray: TMPDIR, or a short folder if Ray cannot use TMPDIR."""

import logging
import os
import stat
import sys
import tempfile

from lungseg.errors import SettingsError

logger = logging.getLogger(__name__)

_SHORT_PARENTS = ("/tmp", "/var/tmp")  # noqa: S108
_SOCKET = "/ray/session_2026-01-31_23-59-59_999999_4194304/sockets/plasma_store"  # the longest path that Ray adds
_MAX_SOCKET_PATH = 107 if sys.platform.startswith("linux") else 103  # bytes, a limit of Unix sockets
MAX_LENGTH = _MAX_SOCKET_PATH - len(_SOCKET)
"""Longest path of a temporary folder in which Ray can start, bytes."""


def temporary_folder() -> str:
    """Return the folder in which Ray keeps its files by default, in a subfolder `ray`."""
    return os.environ[_variable()] if _variable() else "/tmp"  # noqa: S108


def choose_ray_folder() -> str:
    """Return the folder for a Ray of this job; a private short one if Ray cannot start in the temporary folder.

    Raises:
        SettingsError: the temporary folder cannot be used, or Ray can use neither it nor a short one.

    """
    folder = temporary_folder()
    _require_writable(folder)
    if os.path.isabs(folder) and folder.isascii() and len(folder) <= MAX_LENGTH:
        return os.path.join(folder, "ray")
    for parent in _SHORT_PARENTS:
        private = _private_folder(parent)
        if private:
            logger.info("%s is too long or not plain ASCII for Ray: Ray keeps its files in %s", _variable(), private)
            # A subfolder, because Ray opens its own folder to all users.
            return os.path.join(private, "ray")
    raise SettingsError(
        f"{_variable()}={folder}: Ray needs an absolute path of at most {MAX_LENGTH} ASCII characters, and no short "
        f"folder can be made in {' or '.join(_SHORT_PARENTS)}: set RAY_TMPDIR to a short folder"
    )


def _variable() -> str:
    """Return the variable that sets the temporary folder, in the same order as Ray; "" for none."""
    names = ("RAY_TMPDIR", "TMPDIR") if sys.platform.startswith("linux") else ("RAY_TMPDIR",)
    return next((name for name in names if os.environ.get(name)), "")


def _require_writable(folder: str) -> None:
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix="lungseg-"):
            pass
    except OSError as error:
        name = f"{_variable()}={folder}" if _variable() else folder
        raise SettingsError(
            f"{name}: cannot be used as the folder of temporary files ({(error.strerror or 'not writable').lower()}): "
            "set TMPDIR to a folder that exists and that you can write to"
        ) from None


def _private_folder(parent: str) -> str:
    """Return a folder of this user that no other user can open or replace; "" if it cannot be made."""
    folder = os.path.join(parent, f"lungseg-user-{os.getuid()}")
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        state = os.lstat(folder)
    except OSError:
        return ""
    is_private = stat.S_ISDIR(state.st_mode) and state.st_uid == os.getuid() and not state.st_mode & 0o077
    return folder if is_private and os.access(folder, os.W_OK | os.X_OK) else ""
