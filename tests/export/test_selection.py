"""Which predictions are exported: parts that are whole, and rows for which a query holds over all of them."""

# ruff: noqa: F401, F811  # fixtures of another file

from pathlib import Path
from typing import Any

import pytest

from lungseg.errors import InputError, SettingsError
from lungseg.export import selection
from lungseg.predictions.parts import part_path
from lungseg.schema import PREDICTIONS, table
from tests.pipelines.test_export import predictions, row_of, run


@pytest.mark.parametrize("where", ["area_px", "dice * 2", "dice.mean() > 0.5", "1", "dataset"])
def test_a_query_that_is_no_condition_is_refused(where: str, predictions: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="not true or false for each row"):
        run(predictions, tmp_path / "out", "masks", where=where)
    assert not (tmp_path / "out").exists()


def test_a_query_is_asked_of_all_parts_at_once(predictions: Path) -> None:
    paths = selection.verified_parts(str(predictions))
    found = selection.select_rows(paths, "dice <= dice.quantile(0.5)")  # of 0.8, 0.9 in the first, 0.95 in the second
    assert [part["rows"] for part in found] == [[0, 1], []]
    assert [part["rows"] for part in selection.select_rows(paths, "")] == [None, None]


def test_predicted_rows_are_those_with_a_mask(draw_pair: Any) -> None:
    _, mask = draw_pair(1, 40, 40)
    rows = [row_of(str(i), "x.png", mask, status=("ok", "rejected", "repaired")[i % 3]) for i in range(6)]
    assert selection.rows_with_mask(table(rows, PREDICTIONS)).column("image_id").to_pylist() == ["0", "2", "3", "5"]


def test_parts_that_are_missing_or_of_another_start_are_refused(predictions: Path, tmp_path: Path) -> None:
    part = Path(part_path(str(predictions), 1))
    part.rename(part_path(str(predictions), 7))
    with pytest.raises(InputError, match=r"2 of 2 parts are missing or not as .*part-000001.parquet.*infer.py again"):
        run(predictions, tmp_path / "out", "coco")
