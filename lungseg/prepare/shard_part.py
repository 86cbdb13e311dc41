"""The part of a tar, `parts/<shard>.json`: digests of its inputs and of itself, its size, records and index rows."""

from typing import Any, NamedTuple

import pyarrow as pa

from lungseg import storage
from lungseg.arrays import Row
from lungseg.errors import InputError
from lungseg.schema import INDEX, MANIFEST, table
from lungseg.storage.json_files import JsonFields, Whole, check_fields
from lungseg.storage.table_formats import INDEX_TABLE, MANIFEST_TABLE, check_table


class ShardPart(NamedTuple):
    """Content of a part: its JSON object, and its manifest and index rows as tables."""

    content: Row
    records: pa.Table
    index: pa.Table


class _ShardFields(JsonFields):
    name: str
    bytes: Whole
    sha256: str


class _PartFields(JsonFields):
    inputs_digest: str = ""
    shard: _ShardFields
    records: list[dict[str, Any]]
    index: list[dict[str, Any]]


def part_path(folder: str, name: str) -> str:
    """Return the path of the part of a tar."""
    return storage.join(folder, "parts", f"{name}.json")


def read_part(folder: str, name: str) -> ShardPart:
    """Read the part of a tar and check it.

    Raises:
        InputError: it cannot be read, or it is damaged.

    """
    path = part_path(folder, name)
    content = storage.read_bytes(path)
    part = storage.read_json(path, content)
    if not storage.has_valid_digest(part):
        raise InputError(f"{path}: is damaged (its checksum does not match): run lungseg prepare again")
    check_fields(content, path, _PartFields, "run lungseg prepare again")
    records, index = _table(part["records"], MANIFEST, path), _table(part["index"], INDEX, path)
    check_table(records, path, MANIFEST_TABLE)
    check_table(index, path, INDEX_TABLE)
    return ShardPart(part, records, index)


def _table(rows: list[Row], schema: pa.Schema, path: str) -> pa.Table:
    try:
        return table(rows, schema)
    except (KeyError, OverflowError, UnicodeError, pa.ArrowException):
        raise InputError(f"{path}: a row lacks a value or has one of another type: run lungseg prepare again") from None
