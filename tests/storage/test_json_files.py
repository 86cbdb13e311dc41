from pathlib import Path

import pytest

from lungseg import storage
from lungseg.errors import InputError
from lungseg.storage.json_files import Finite, JsonFields, Whole, parse_json


class Fields(JsonFields):
    name: str
    count: Whole
    share: Finite = 0.5
    names: list[str] = []  # noqa: RUF012


@pytest.mark.parametrize("content", [b"[" * 100_000, b'{"a":' * 100_000, b"\xff\xfe{", b"1" * 5000 + b"x", b""])
def test_text_that_is_no_json_is_refused(content: bytes) -> None:
    with pytest.raises(InputError, match=r"x\.json: not valid JSON"):
        parse_json(content, "x.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": None}, "name is null, expected text"),
        ({"count": -1}, "count is -1, expected"),
        ({"count": True}, "count is true, expected a whole number"),
        ({"count": 10**30}, "count is 1000000000"),
        ({"share": float("nan")}, "share is NaN, expected a number"),
        ({"share": "0.5"}, 'share is "0.5", expected a number'),
        ({"names": {"a": 1}}, 'names is {"a": 1}, expected a list'),
        ({"names": ["a", 1]}, "names.1 is 1, expected text"),
    ],
)
def test_a_field_of_another_type_is_named(change: dict[str, object], message: str, tmp_path: Path) -> None:
    path = str(tmp_path / "x.json")
    storage.write_json(path, {"name": "a", "count": 1, **change})
    with pytest.raises(InputError) as refused:
        storage.read_json(path, fields=Fields)
    assert message in str(refused.value)


def test_a_missing_field_is_named(tmp_path: Path) -> None:
    path = str(tmp_path / "x.json")
    storage.write_json(path, {"name": "a"})
    with pytest.raises(InputError, match="count is missing"):
        storage.read_json(path, fields=Fields)
