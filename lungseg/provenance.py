"""Record where a result comes from: provenance.json of a run, digest of the code, git commit, and command."""

import functools
import hashlib
import platform
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from lungseg import storage
from lungseg.storage.json_files import JsonFields
from lungseg.versions import versions

_PACKAGE = Path(__file__).resolve().parent
_LIBRARIES = ("torch", "ray", "numpy", "opencv-python-headless", "segmentation-models-pytorch", "timm")
_GIT_TIMEOUT_S = 10


class _Git(JsonFields):
    commit: str = ""
    uncommitted_changes: bool = False


class _Start(JsonFields):
    code: str = ""
    git: _Git | None = None
    versions: dict[str, str | None] = Field(default_factory=dict)


class _ProvenanceFields(JsonFields):
    starts: Annotated[list[_Start], Field(min_length=1)]


def read(folder: str) -> dict[str, Any]:
    """Read provenance.json of a run: `starts`, first to last, and `finished`; {} before the first start.

    Times are in UTC, such as 2026-01-31T23:59:59Z.
    """
    path = storage.join(folder, "provenance.json")
    return storage.read_json(path, fields=_ProvenanceFields) if storage.exists(path) else {}


def record_start(folder: str, details: dict[str, Any]) -> None:
    """Append a start of a run to its provenance.json, with time, host, code and versions."""
    start = {"time": _now(), "host": platform.node(), "code": code_digest(), "versions": versions(_LIBRARIES)}
    starts = read(folder).get("starts", [])
    _write(folder, {"starts": [*starts, {**start, **details}], "finished": None})


def record_end(folder: str) -> None:
    """Record that a run is finished."""
    _write(folder, {**read(folder), "finished": _now()})


@functools.cache
def code_digest() -> str:
    """Return a digest of all source files of the package, 12 hexadecimal digits."""
    content = hashlib.sha256()
    for path in sorted(_PACKAGE.rglob("*.py")):
        content.update(f"{path.relative_to(_PACKAGE).as_posix()}\0".encode() + path.read_bytes() + b"\0")
    return content.hexdigest()[:12]


def git_state() -> dict[str, Any]:
    """Return the commit of the checkout that holds the package, and whether files differ from it; {} outside of one."""
    commit = _git("rev-parse", "HEAD")
    if commit is None:
        return {}
    return {"commit": commit, "uncommitted_changes": bool(_git("status", "--porcelain", "--untracked-files=no"))}


def command_line() -> str:
    """Return the command that started this process, for a shell."""
    return shlex.join([Path(sys.executable).name, *sys.argv])


def _git(*words: str) -> str | None:
    try:
        done = subprocess.run(  # noqa: S603  # fixed words
            ["git", "-C", str(_PACKAGE), *words],  # noqa: S607  # git of the user's PATH
            capture_output=True,
            text=True,
            timeout=_GIT_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _write(folder: str, content: dict[str, Any]) -> None:
    storage.write_json(storage.join(folder, "provenance.json"), content)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
