"""What travels: columns, their order, and the schema's number."""

from dataclasses import FrozenInstanceError, asdict, fields
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lungseg import schema
from lungseg.errors import InputError
from lungseg.schema import SCHEMA, Geometry, Record

TABLES = {name: value for name, value in vars(schema).items() if isinstance(value, pa.Schema)}
RECORD = Record("a", "north", "/x/a.png", ("/m/a.png",), ("lung",), "p", flags=("mask_uneven",), height=3, width=4)


def test_there_are_five_tables_and_each_carries_the_number() -> None:
    assert set(TABLES) == {"MANIFEST", "INDEX", "TEST_ROWS", "STUDY_ROWS", "PREDICTIONS"}
    assert all(table.metadata == {b"lungseg.schema": str(SCHEMA).encode()} for table in TABLES.values())


def test_the_manifest_has_the_columns_of_a_record() -> None:
    assert schema.MANIFEST.names == [field.name for field in fields(Record)]


def test_a_record_goes_through_the_manifest_unchanged() -> None:
    (row,) = schema.table([asdict(RECORD)], schema.MANIFEST).to_pylist()
    assert Record.from_dict(row) == RECORD


@pytest.mark.parametrize("name", sorted(TABLES))
def test_no_rows_make_a_table_of_the_schema(name: str) -> None:
    table = schema.table([], TABLES[name])
    assert table.num_rows == 0
    assert table.schema.equals(TABLES[name], check_metadata=True)


def test_more_than_the_columns_is_left_out_and_less_is_a_bug() -> None:
    row: dict[str, Any] = {**asdict(RECORD), "PatientName": "Doe"}
    assert schema.table([row], schema.MANIFEST).schema.names == schema.MANIFEST.names
    del row["reason"]
    with pytest.raises(KeyError, match="reason"):
        schema.table([row], schema.MANIFEST)


def test_a_value_of_another_type_is_refused() -> None:
    with pytest.raises(pa.ArrowInvalid):
        schema.table([{**asdict(RECORD), "height": "tall"}], schema.MANIFEST)


def test_this_schema_passes() -> None:
    schema.check_schema(SCHEMA, "x.json")


@pytest.mark.parametrize("found", [0, SCHEMA + 1, str(SCHEMA), None, "none"])
def test_another_schema_is_refused_by_name(found: Any) -> None:
    with pytest.raises(InputError, match=rf"x\.json: schema {found}, this lungseg reads schema {SCHEMA}"):
        schema.check_schema(found, "x.json")


@pytest.mark.parametrize("value", [RECORD, Geometry(1, 1, 1, 1, 0, 0, 1), schema.Counts(1, 2, 3, 4)])
def test_what_travels_cannot_be_changed(value: Any) -> None:
    with pytest.raises(FrozenInstanceError):
        setattr(value, fields(value)[0].name, 0)


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 128))
def test_content_is_where_picture_and_square_overlap(height: int, width: int, size: int) -> None:
    top, left = (size - height) // 2, (size - width) // 2
    rows, columns = Geometry(height, width, height, width, top, left, size).content()
    shown_rows = [row for row in range(size) if top <= row < top + height]
    shown_columns = [column for column in range(size) if left <= column < left + width]
    assert list(range(size))[rows] == shown_rows
    assert list(range(size))[columns] == shown_columns
