"""ONNX files of lungseg: a graph, followed by its metadata and a digest of both. Imports neither torch nor onnx.

An ONNX file is a protobuf message, and the fields of two messages that follow each other count as those of one. So the
metadata is appended as a second message, every ONNX reader finds it in `metadata_props`, and the digest covers exactly
the bytes before it.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from lungseg import storage
from lungseg.errors import CheckpointError, InputError
from lungseg.storage.json_files import JsonFields, check_fields

ONNX_FORMAT = 1
"""Number of the format of the metadata. Raise it when the metadata change: files with another number are refused."""
SUFFIX = ".onnx"
INPUT, OUTPUT = "images", "probabilities"
_METADATA, _DIGEST = "lungseg", "lungseg.sha256"
_PROPERTIES = 14  # number of the field ModelProto.metadata_props
_LENGTH_DELIMITED, _VARINT, _FIXED_64, _FIXED_32 = 2, 0, 1, 5  # wire types of protobuf
_MAX_BYTES = 2 << 30  # of a protobuf message


class ExportError(CheckpointError):
    """The network uses an operation that ONNX does not have."""


class Check(JsonFields):
    """How masks of a backend compare with those of torch.

    changed: share of pixels. passed: they are close enough. seconds: for one image, on the machine of the comparison.
    """

    changed: Annotated[float, Field(ge=0.0, le=1.0)]
    passed: bool
    seconds: Annotated[float, Field(ge=0.0)]


class OnnxFields(JsonFields):
    """The fields of the metadata that a reader needs. checks: by the name of the backend."""

    onnx_format: int
    precision: Literal["fp32", "int8"]
    config: dict[str, Any]
    checks: dict[str, Check]


@dataclass(frozen=True)
class OnnxFile:
    """The parts of a file. graph: the network alone, as an ONNX file. metadata: see docs/backends.md."""

    graph: bytes
    metadata: dict[str, Any]

    def encode(self) -> bytes:
        """Return the content of the file."""
        text = json.dumps(self.metadata, sort_keys=True).encode()
        digest = hashlib.sha256(self.graph + text).hexdigest().encode()
        return self.graph + _property(_METADATA.encode(), text) + _property(_DIGEST.encode(), digest)


def is_onnx(path: str) -> bool:
    """Return whether a path names an ONNX file."""
    return path.lower().endswith(SUFFIX)


def read_onnx(path: str) -> OnnxFile:
    """Read an ONNX file that lungseg exported.

    Raises:
        CheckpointError: it is damaged, was changed, or was not exported by lungseg.
        InputError: it cannot be read.

    """
    return parse_onnx(storage.read_bytes(path), path)


def parse_onnx(content: bytes, path: str) -> OnnxFile:
    """Parse the content of an ONNX file; `path` names it in errors.

    Raises:
        CheckpointError: as `read_onnx`.

    """
    try:
        properties = {key: (start, value) for start, key, value in _properties(content)}
    except (IndexError, ValueError):
        raise _damaged(path) from None
    if _METADATA.encode() not in properties:
        raise CheckpointError(
            f"{path}: not an ONNX file of lungseg, or damaged: write one with lungseg export-model --format onnx"
        )
    start, text = properties[_METADATA.encode()]
    graph, (_, recorded) = content[:start], properties.get(_DIGEST.encode(), (0, b""))
    if hashlib.sha256(graph + text).hexdigest().encode() != recorded:
        raise _damaged(path)
    return OnnxFile(graph, parse_metadata(text, path))


def parse_metadata(text: bytes, path: str) -> dict[str, Any]:
    """Parse the metadata of a file.

    Raises:
        CheckpointError: it is not valid, or of another format.

    """
    try:
        check_fields(text, path, OnnxFields)
    except InputError as error:
        raise CheckpointError(f"{error}") from None
    metadata: dict[str, Any] = json.loads(text)
    if metadata["onnx_format"] != ONNX_FORMAT:
        raise CheckpointError(
            f"{path}: ONNX format {metadata['onnx_format']}, this version reads {ONNX_FORMAT}: export the model again"
        )
    return metadata


def _damaged(path: str) -> CheckpointError:
    return CheckpointError(f"{path}: the digest differs from the content: the file is damaged; copy or export it again")


def _properties(content: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """Yield the metadata of an ONNX file: the position of each entry, its key and its value.

    Raises:
        ValueError: not a protobuf message.
        IndexError: it ends in the middle of a number.

    """
    for start, number, value in _fields(content):
        if number == _PROPERTIES:
            entry = {key: text for _, key, text in _fields(value)}
            yield start, entry.get(1, b""), entry.get(2, b"")


def _fields(content: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Yield the position, the number and the bytes of each field of a protobuf message; no bytes for numbers."""
    position = 0
    while position < len(content):
        start = position
        tag, position = _read_varint(content, position)
        kind, value = tag & 7, b""
        if kind == _LENGTH_DELIMITED:
            length, position = _read_varint(content, position)
            if position + length > len(content):
                raise ValueError("the message ends in a field")
            value, position = content[position : position + length], position + length
        elif kind == _VARINT:
            _, position = _read_varint(content, position)
        elif kind in (_FIXED_64, _FIXED_32):
            position += 8 if kind == _FIXED_64 else 4
        else:
            raise ValueError(f"no wire type {kind}")
        yield start, tag >> 3, value


def _read_varint(content: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = content[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80 or value > _MAX_BYTES:
            return value, position
        shift += 7


def _property(key: bytes, value: bytes) -> bytes:
    """Encode a metadata entry as a field of ModelProto."""
    return _field(_PROPERTIES, _field(1, key) + _field(2, value))


def _field(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | _LENGTH_DELIMITED) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])
