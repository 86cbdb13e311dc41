"""Checks that a Parquet file of lungseg has the columns and the values that its readers need."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from lungseg.arrow import pa, pc
from lungseg.errors import InputError
from lungseg.result_columns import PREDICTIONS, STUDY_ROWS, TEST_ROWS
from lungseg.schema import INDEX, MANIFEST, STATUSES, Record

_ADVICE = "the file is damaged, or was changed; create it again"


@dataclass(frozen=True)
class TableFormat:
    """Columns of a table; all others are ignored.

    nullable: columns that may have empty cells. patterns: regular expressions that all texts of a column match.
    Numbers are finite. signed: columns whose whole numbers may be negative. added: columns that files of earlier
    versions lack, with the text that all their rows then have.
    """

    schema: pa.Schema
    nullable: frozenset[str] = frozenset()
    patterns: Mapping[str, str] = field(default_factory=dict)
    signed: frozenset[str] = frozenset()
    added: Mapping[str, str] = field(default_factory=dict)


_TOO_LARGE = 1e12  # sums of larger numbers may overflow
_TEXT = b"description"
_STATUS = {"status": "|".join(STATUSES)}
# Fields of Record that may be unknown, and columns whose description says so.
_UNKNOWN = frozenset(one.name for one in fields(Record) if one.default is None)
_UNDEFINED = frozenset(
    one.name for one in STUDY_ROWS if pa.types.is_floating(one.type) or b"null" in one.metadata[_TEXT]
)
_FOLD = frozenset({"fold"})  # -1: to train on in every fold
INDEX_TABLE = TableFormat(INDEX, _UNKNOWN, {"phash": "[0-9a-f]{64}", "shard": r"[^/]+-\d{6,}"}, _FOLD)
_GREY_VALUES = {"mask_values": "([0-9]{1,5}(,[0-9]{1,5})*)?"}
MANIFEST_TABLE = TableFormat(MANIFEST, _UNKNOWN, {**_STATUS, **_GREY_VALUES}, _FOLD)
_CLASS = {"class": "lung"}
TEST_TABLE = TableFormat(TEST_ROWS, _UNDEFINED | {"group"}, {"role": "held-out|cross"}, added=_CLASS)
STUDY_TABLE = TableFormat(
    STUDY_ROWS,
    TEST_TABLE.nullable,
    {"role": "held-out|cross", "protocol": "pooled|source-to-source|leave-one-dataset-out"},
    added=_CLASS,
)
PREDICTION_TABLE = TableFormat(
    PREDICTIONS,
    frozenset(PREDICTIONS.names) - {"image_id", "dataset", "source_uri", "status", "codes"},
    _STATUS,
    frozenset(PREDICTIONS.names),  # lungseg.inference.recompute names the rows with wrong values
)


def with_added_columns(table: pa.Table, expected: TableFormat) -> pa.Table:
    """Return a table with the columns that a file of an earlier version lacks."""
    for name, text in expected.added.items():
        if name not in table.column_names:
            position, values = expected.schema.get_field_index(name), pa.array([text] * table.num_rows, pa.string())
            table = table.add_column(min(position, table.num_columns), expected.schema.field(name), values)
    return table


def check_table(table: pa.Table, path: str, expected: TableFormat) -> None:
    """Check columns and values of a table.

    Raises:
        InputError: a column is missing, occurs twice, has another type, or has an impossible value.

    """
    for one in expected.schema:
        count = table.column_names.count(one.name)
        if count != 1:
            raise InputError(f"{path}: {count} columns {one.name}, expected one: {_ADVICE}")
        column = table.column(one.name)
        if _value_type(column.type) != _value_type(one.type):
            raise InputError(f"{path}: column {one.name} has the type {column.type}, expected {one.type}: {_ADVICE}")
        problem = _find_problem(column, one.name, expected)
        if problem:
            raise InputError(f"{path}: column {one.name} has {problem}: {_ADVICE}")


def _value_type(kind: pa.DataType) -> tuple[bool, pa.DataType]:
    """Return whether a type is a list, and the type of its values: Parquet renames the item field of a list."""
    return (True, kind.value_type) if pa.types.is_list(kind) else (False, kind)


def _find_problem(column: pa.ChunkedArray, name: str, expected: TableFormat) -> str:
    """Describe the first impossible value of a column; empty if there is none."""
    if column.null_count and name not in expected.nullable:
        return "empty cells, expected none"
    if pa.types.is_list(column.type):
        column = pc.list_flatten(column)
        if column.null_count:
            return "empty values in its lists, expected none"
    if pa.types.is_floating(column.type) and not pc.all(pc.less(pc.abs(column), _TOO_LARGE), min_count=0).as_py():
        return "a number that cannot be right"  # NaN too
    if pa.types.is_integer(column.type) and name not in expected.signed and (pc.min(column).as_py() or 0) < 0:
        return "a negative number, expected 0 or more"
    pattern = expected.patterns.get(name)
    if pattern and not pc.all(pc.match_substring_regex(column, f"^({pattern})$"), min_count=0).as_py():
        return f"an unknown value, expected {pattern.replace('|', ' or ')}"
    return ""
