import pyarrow as pa
import pytest

from lungseg.errors import InputError
from lungseg.storage.table_formats import TableFormat, check_table, with_added_columns

_SCHEMA = pa.schema(
    [("name", pa.string()), ("size", pa.int64()), ("share", pa.float64()), ("tags", pa.list_(pa.string()))]
)
_FORMAT = TableFormat(_SCHEMA, frozenset({"share"}), {"name": "[a-z]+"})


def _table(**changes: pa.Array) -> pa.Table:
    columns = {"name": pa.array(["a"]), "size": pa.array([1]), "share": pa.array([0.5]), "tags": pa.array([["x"]])}
    return pa.table({**columns, **changes})


def test_valid_rows_pass() -> None:
    check_table(_table(), "x.parquet", _FORMAT)
    check_table(_table(share=pa.array([None], pa.float64()), other=pa.array([1])), "x.parquet", _FORMAT)
    check_table(_table().slice(0, 0), "x.parquet", _FORMAT)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("name", pa.array([None], pa.string()), "empty cells"),
        ("name", pa.array(["a\nB"]), r"an unknown value, expected \[a-z\]\+"),
        ("size", pa.array([-1]), "a negative number"),
        ("size", pa.array(["1"]), "the type string, expected int64"),
        ("share", pa.array([float("nan")]), "a number that cannot be right"),
        ("share", pa.array([float("-inf")]), "a number that cannot be right"),
        ("tags", pa.array([[None]], pa.list_(pa.string())), "empty values in its lists"),
        ("tags", pa.array(["x"]), "the type string, expected list"),
    ],
)
def test_an_impossible_value_is_refused(name: str, values: pa.Array, message: str) -> None:
    with pytest.raises(InputError, match=f"column {name} has {message}"):
        check_table(_table(**{name: values}), "x.parquet", _FORMAT)


def test_a_missing_or_double_column_is_refused() -> None:
    for table, count in ((_table().drop_columns(["size"]), 0), (_table().append_column("size", pa.array([2])), 2)):
        with pytest.raises(InputError, match=f"{count} columns size, expected one"):
            check_table(table, "x.parquet", _FORMAT)


def test_columns_of_later_versions_are_added() -> None:
    older = TableFormat(_SCHEMA, added={"name": "lung", "other": "unused"})
    table = with_added_columns(_table().drop_columns(["name"]), TableFormat(_SCHEMA, added={"name": "lung"}))
    assert table.column_names == _SCHEMA.names
    assert table.column("name").to_pylist() == ["lung"]
    check_table(table, "x.parquet", _FORMAT)
    assert with_added_columns(_table(other=pa.array(["x"])), older).column("name").to_pylist() == ["a"]
