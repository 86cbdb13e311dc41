"""CSV of prediction rows: order, cells, and safety against formulas."""

import csv
import io
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, strategies as st

from lungseg.predictions.csv_table import COLUMNS, CsvTable
from lungseg.result_columns import PREDICTIONS

Row = dict[str, Any]


def row(name: str, doubt: float | None = 0.1, *flags: str, **values: object) -> Row:
    status = "ok" if doubt is not None else "rejected"
    ids = {"image_id": name, "status": status, "doubt": doubt, "flags": list(flags)}
    return {**dict.fromkeys(PREDICTIONS.names), **ids, **values}


def encode(*rows: Row) -> bytes:
    table = CsvTable()
    table.add(rows[:1])
    table.add(rows[1:])
    return table.encode()


def read(content: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline="")))


def test_flags_come_first_then_the_highest_doubt() -> None:
    rows = [row("a", 0.1), row("none", None), row("b", 0.3), row("c", 0.02, "rotated"), row("d", 0.9, "no_mask")]
    ranked = [(line["rank"], line["image_id"]) for line in read(encode(*rows))]
    assert ranked == [("1", "c"), ("2", "d"), ("3", "b"), ("4", "a"), ("", "none")]


def test_equal_rows_keep_their_order() -> None:
    assert [line["image_id"] for line in read(encode(row("z"), row("a"), row("m")))] == ["z", "a", "m"]


def test_cells_are_plain_and_masks_are_left_out() -> None:
    values: Row = {"bbox": [1, 2, 30, 40], "seen_in_training": False, "mask": "run lengths", "area_cm2": 151.234567}
    (line,) = read(encode(row("a", 0.123456789, "rotated", "lungs_joined", **values)))
    assert tuple(line) == ("rank", *COLUMNS)
    assert "mask" not in line
    assert (line["bbox"], line["flags"]) == ("1;2;30;40", "rotated;lungs_joined")
    assert (line["seen_in_training"], line["area_cm2"], line["doubt"]) == ("false", "151.235", "0.123457")
    assert line["dice"] == ""


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_file_names_are_not_run_as_formulas(start: str) -> None:
    name = f"{start}cmd|' /C calc'!A0.png"
    content = encode(row(name, 0.1, source_uri=name, message=name))
    (line,) = read(content)
    assert line["image_id"] == line["source_uri"] == line["message"] == f"'{name}"


@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=20), min_size=1, max_size=5))
def test_any_text_is_read_back(names: list[str]) -> None:
    lines = read(encode(*(row(name) for name in names)))
    assert [line["image_id"].removeprefix("'") for line in lines] == [name.removeprefix("'") for name in names]


def test_pandas_reads_the_table() -> None:
    frame = pd.read_csv(io.BytesIO(encode(row("Müller", 0.25), row("b", None))))
    assert list(frame["rank"][:1]) == [1]
    assert list(frame["image_id"]) == ["Müller", "b"]
