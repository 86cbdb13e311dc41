"""What segmenting local files needs of pyarrow, for installations without it: declarations, and the local disk.

Schemas and types can be declared, as modules do when they are imported. Tables and buckets raise an InputError.
"""

import enum
import os
import shutil
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote, urlsplit

from lungseg.errors import InputError


class ArrowException(Exception):  # noqa: N818  # the name in pyarrow
    """Raised by pyarrow only."""


class _Missing:
    """A part of pyarrow; using it raises an InputError."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> "_Missing":
        if name.startswith("__"):
            raise AttributeError(name)
        return _Missing(f"{self._name}.{name}")

    def __call__(self, *_: Any, **__: Any) -> Any:
        raise InputError(f"this needs {self._name}, which an edge installation lacks: run pip install lungseg")


missing = _Missing("pyarrow")


def __getattr__(name: str) -> Any:
    """Return a declared type, such as `string`, or a placeholder, which annotations may name."""
    if name.startswith("__"):
        raise AttributeError(name)
    return _DECLARED.get(name) or _Missing(f"pyarrow.{name}")


@dataclass(frozen=True)
class Field:
    """A column of a schema."""

    name: str
    type: Any
    metadata: dict[bytes, bytes]


class Schema(tuple[Field, ...]):
    """Columns, as pyarrow.Schema."""

    __slots__ = ()

    @property
    def names(self) -> list[str]:
        """Names of the columns."""
        return [one.name for one in self]


def field(name: str, kind: Any, metadata: dict[str, str] | None = None) -> Field:
    """Declare a column."""
    return Field(name, kind, {key.encode(): value.encode() for key, value in (metadata or {}).items()})


def schema(fields: Any, metadata: Any = None) -> Schema:  # noqa: ARG001
    """Declare a table."""
    return Schema(one if isinstance(one, Field) else field(*one) for one in fields)


def _declare(*_: Any) -> str:
    return "type"


_TYPES = ("string", "bool_", "int32", "int64", "float32", "float64", "list_", "struct", "binary", "large_binary")
_DECLARED: dict[str, Any] = dict.fromkeys(_TYPES, _declare)
types = SimpleNamespace(is_floating=lambda _: True, is_list=lambda _: False, is_integer=lambda _: False)


class _FileType(enum.Enum):
    NotFound = 0
    File = 2
    Directory = 3


class _LocalFileSystem:
    """The local disk, with the calls that `lungseg.storage` makes."""

    type_name = "local"

    @staticmethod
    def get_file_info(path: str) -> SimpleNamespace:
        """Return whether a path is a file or a folder."""
        try:
            os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return SimpleNamespace(type=_FileType.NotFound)
        return SimpleNamespace(type=_FileType.Directory if os.path.isdir(path) else _FileType.File)

    @staticmethod
    def create_dir(path: str, recursive: bool) -> None:  # noqa: ARG004
        """Create a folder and its parents."""
        os.makedirs(path, exist_ok=True)

    delete_dir = staticmethod(shutil.rmtree)
    delete_file = staticmethod(os.remove)


class _FileSystem:
    @staticmethod
    def from_uri(uri: str) -> tuple[_LocalFileSystem, str]:
        """Return the disk and the path of a file:// URI."""
        parts = urlsplit(uri)
        if parts.scheme != "file":
            raise ValueError("an edge installation reads local files only")
        return _LocalFileSystem(), unquote(parts.path)


class _Bucket:
    """No file system is one."""


fs = SimpleNamespace(
    LocalFileSystem=_LocalFileSystem,
    FileSystem=_FileSystem,
    S3FileSystem=_Bucket,
    FileType=_FileType,
    FileInfo=SimpleNamespace,
    FileSelector=_Missing("pyarrow.fs.FileSelector"),
)
