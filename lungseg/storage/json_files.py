"""JSON files with the schema version, and checks that their fields have the types that a reader needs."""

import json
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lungseg import __version__
from lungseg.errors import InputError
from lungseg.schema import SCHEMA, check_schema
from lungseg.storage.files import digest, read_bytes, write_bytes

Whole = Annotated[int, Field(ge=0, le=1 << 53)]
"""A count, a size or a position."""
Finite = Annotated[float, Field(allow_inf_nan=False)]
_DAMAGED = "the file is damaged; create it again"
_EXPECTED = {
    "missing": "a value",
    "string": "text",
    "int": "a whole number",
    "float": "a number",
    "finite": "a number",
    "bool": "true or false",
    "list": "a list",
    "tuple": "a list",
    "dict": "names and values",
    "model": "names and values",
}
_JSON_TYPES = {type(None): "null", bool: "true or false", int: "a number", float: "a number"}
_JSON_TYPES |= {str: "text", list: "a list"}


class JsonFields(BaseModel):
    """Fields of a JSON file that a reader needs, with their exact types; other fields are ignored."""

    model_config = ConfigDict(strict=True, frozen=True)


def parse_json(content: bytes, path: str) -> Any:
    """Parse JSON.

    Raises:
        InputError: the content is not JSON, or is nested too deeply; `path` names the file.

    """
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        raise InputError(f"{path}: not valid JSON: {_DAMAGED}") from None


def read_json(path: str, content: bytes | None = None, fields: type[JsonFields] | None = None) -> dict[str, Any]:
    """Read a JSON object of the current schema version.

    content: the bytes of the file, where they were read before. fields: the fields that must be present and valid.

    Raises:
        InputError: the file does not exist, is not a JSON object, has another schema version, or a field is not valid.

    """
    content = read_bytes(path) if content is None else content
    value = parse_json(content, path)
    if not isinstance(value, dict):
        raise InputError(f"{path}: {_JSON_TYPES[type(value)]}, expected a JSON object: {_DAMAGED}")
    check_schema(value.get("schema"), path, str(value.get("lungseg_version") or ""))
    if fields is not None:
        check_fields(content, path, fields)
    return value


def check_fields(content: bytes, path: str, fields: type[JsonFields], advice: str = _DAMAGED) -> JsonFields:
    """Check the fields of a JSON object, and return them; a number too large for a float is infinite.

    Raises:
        InputError: a field is missing or has another type or an impossible value.

    """
    try:
        return fields.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        name = ".".join(map(str, first["loc"])) or "the content"
        kind = first["type"].split("_")[0]
        if kind == "json":
            raise InputError(f"{path}: not valid JSON: {advice}") from None
        if first["type"] == "missing":
            raise InputError(f"{path}: {name} is missing: {advice}") from None
        expected = _EXPECTED.get(kind, "another value")
        actual = json.dumps(first["input"], default=str)[:80]
        raise InputError(f"{path}: {name} is {actual}, expected {expected}: {advice}") from None


def write_json(path: str, value: dict[str, Any], indent: int | None = 1) -> None:
    """Write a JSON object after the schema version and the lungseg version; indent=None is ten times faster."""
    content = {"schema": SCHEMA, "lungseg_version": __version__, **value}
    write_bytes(path, (json.dumps(content, indent=indent) + "\n").encode())


def has_valid_digest(value: dict[str, Any]) -> bool:
    """Return whether a JSON object matches the digest in its field `checked`."""
    not_covered = ("schema", "lungseg_version", "checked")
    return value.get("checked") == digest({name: field for name, field in value.items() if name not in not_covered})
