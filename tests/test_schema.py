"""Columns of all tables, their order, and the schema version."""

from dataclasses import FrozenInstanceError, asdict, fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, strategies as st

from lungseg import result_columns, schema, storage
from lungseg.errors import InputError
from lungseg.predictions.parts import part_path, rows_folder
from lungseg.result_columns import PREDICTIONS
from lungseg.schema import SCHEMA, Geometry, Record, table

_NAMES = {**vars(schema), **vars(result_columns)}
TABLES = {name: value for name, value in _NAMES.items() if isinstance(value, pa.Schema)}
RECORD = Record("a", "north", "/x/a.png", ("/m/a.png",), ("lung",), "p", flags=("mask_uneven",), height=3, width=4)


def test_every_table_carries_the_schema_number() -> None:
    assert set(TABLES) == {"MANIFEST", "INDEX", "TEST_ROWS", "STUDY_ROWS", "PREDICTIONS"}
    assert {table.metadata[b"lungseg.schema"] for table in TABLES.values()} == {str(SCHEMA).encode()}
    named = {name for name, table in TABLES.items() if b"lungseg.version" in table.metadata}
    assert named == TABLES.keys() - {
        "INDEX"
    }  # run names are derived from these bytes, so they must not change in a new version


def test_the_manifest_has_the_columns_of_a_record() -> None:
    assert schema.MANIFEST.names == [field.name for field in fields(Record)]


def test_a_record_goes_through_the_manifest_unchanged() -> None:
    assert RECORD.to_dict() == asdict(RECORD)
    (row,) = schema.table([RECORD.to_dict()], schema.MANIFEST).to_pylist()
    assert Record.from_dict(row) == RECORD


@pytest.mark.parametrize("name", sorted(TABLES))
def test_no_rows_make_a_table_of_the_schema(name: str) -> None:
    table = schema.table([], TABLES[name])
    assert table.num_rows == 0
    assert table.schema.equals(TABLES[name], check_metadata=True)


def test_extra_values_are_left_out_and_missing_ones_are_a_bug() -> None:
    row: dict[str, Any] = {**asdict(RECORD), "PatientName": "Doe"}
    assert schema.table([row], schema.MANIFEST).schema.names == schema.MANIFEST.names
    del row["message"]
    with pytest.raises(KeyError, match="message"):
        schema.table([row], schema.MANIFEST)


def test_a_value_of_another_type_is_refused() -> None:
    with pytest.raises(pa.ArrowInvalid):
        schema.table([{**asdict(RECORD), "height": "tall"}], schema.MANIFEST)


def test_this_schema_passes() -> None:
    schema.check_schema(SCHEMA, "x.json")


@pytest.mark.parametrize(
    ("number", "version", "writer"),
    [
        (4, "", "lungseg 0.1.0 or older"),
        (SCHEMA + 1, "9.9.9", "lungseg 9.9.9"),
        (SCHEMA + 1, "", "an unknown version"),
        (str(SCHEMA), "", "an unknown version"),
        (None, "", "an unknown version"),
    ],
)
def test_another_schema_is_refused_with_its_writer(number: Any, version: str, writer: str) -> None:
    match = rf"x\.json: schema {number}, written by {writer}; this version \(\S+\) reads schema {SCHEMA}: run the job"
    with pytest.raises(InputError, match=match):
        schema.check_schema(number, "x.json", version)


@pytest.mark.parametrize("value", [RECORD, Geometry(1, 1, 1, 1, 0, 0, 1), schema.Counts(1, 2, 3, 4)])
def test_what_travels_cannot_be_changed(value: Any) -> None:
    with pytest.raises(FrozenInstanceError):
        setattr(value, fields(value)[0].name, 0)


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 128))
def test_content_is_where_image_and_square_overlap(height: int, width: int, size: int) -> None:
    top, left = (size - height) // 2, (size - width) // 2
    rows, columns = Geometry(height, width, height, width, top, left, size).content()
    shown_rows = [row for row in range(size) if top <= row < top + height]
    shown_columns = [column for column in range(size) if left <= column < left + width]
    assert list(range(size))[rows] == shown_rows
    assert list(range(size))[columns] == shown_columns


def test_four_tools_read_the_rows_that_infer_writes(tmp_path: Path) -> None:
    import duckdb
    import pandas as pd
    import polars as pl

    empty = dict.fromkeys(PREDICTIONS.names)
    rows = [
        {**empty, "image_id": "a", "status": "ok", "dice": 0.9, "bbox": [1, 2, 3, 4], "mask_uris": ["m.png"]},
        {**empty, "image_id": "b", "status": "rejected", "mask_uris": [], "bbox": None, "seen_in_training": None},
    ]
    predictions = str(tmp_path / "status=old")  # DuckDB would read this as a column
    path = part_path(predictions, 0)
    storage.write_table(path, table(rows, PREDICTIONS))
    back = pq.read_table(path)
    assert back.schema.equals(PREDICTIONS, check_metadata=False)
    assert all(b"description" in field.metadata for field in back.schema)
    assert back.to_pylist() == table(rows, PREDICTIONS).to_pylist()
    frame = pd.read_parquet(path)
    assert frame["dice"].mean() == 0.9
    assert list(frame["bbox"][0]) == [1, 2, 3, 4]
    lazy = pl.scan_parquet(rows_folder(predictions))
    assert lazy.filter(pl.col("status") == "ok").select("image_id", "bbox").collect().rows() == [("a", [1, 2, 3, 4])]
    source = f"read_parquet('{predictions}/rows/*.parquet', hive_partitioning=false)"
    counted = duckdb.sql(f"select status, count(*) from {source} group by status order by 1")
    assert counted.fetchall() == [("ok", 1), ("rejected", 1)]


@pytest.mark.parametrize("name", ["TEST_ROWS", "STUDY_ROWS", "PREDICTIONS"])
def test_result_files_describe_their_columns(name: str, tmp_path: Path) -> None:
    storage.write_table(str(tmp_path / "x.parquet"), schema.table([], TABLES[name]))
    fields = pq.read_schema(tmp_path / "x.parquet")
    assert all((field.metadata or {}).get(b"description") for field in fields)
