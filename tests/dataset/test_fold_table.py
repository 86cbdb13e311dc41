"""Fold tables: read from CSV, Parquet and splits_final.json, checked, written and read back."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest

from lungseg.dataset import folds
from lungseg.dataset.catalog import PreparedDataset, open_dataset
from lungseg.dataset.fold_table import read_fold_table, require_whole_groups, with_folds, write_fold_files
from lungseg.errors import InputError, SettingsError
from tests import fold_rows
from tests.fold_rows import assign_folds, group_rows

NORTH = [f"north_{number:02d}" for number in range(5)]
SOUTH = [f"south_{number:02d}" for number in range(3)]
GIVEN = dict(zip([*NORTH, *SOUTH], [0, 1, 1, 0, -1, 1, 0, 1], strict=True))


@pytest.fixture(scope="module")
def data(prepared: Path) -> list[PreparedDataset]:
    return [open_dataset(str(prepared / name)) for name in ("north", "south")]


def write(path: Path, changes: dict[str, Any] | None = None, columns: Sequence[str] = ("image_id", "fold")) -> str:
    given = {**GIVEN, **(changes or {})}
    rows = [
        {"dataset": name[:5], "image_id": name, "patient_id": name, "fold": fold}
        for name, fold in given.items()
        if fold is not None
    ]
    frame = pd.DataFrame(rows)[list(columns)]
    frame.to_parquet(path) if path.suffix == ".parquet" else frame.to_csv(path, index=False)
    return str(path)


def folds_of(data: Sequence[PreparedDataset], path: str, count: int = 2) -> dict[str, int]:
    rows = [row for part in with_folds(data, read_fold_table(path), count) for row in part.index.to_pylist()]
    groups = group_rows(rows)
    return dict(zip([row["image_id"] for row in rows], assign_folds(rows, groups, count, 0), strict=True))


@pytest.mark.parametrize("name", ["folds.csv", "folds.parquet"])
@pytest.mark.parametrize("columns", [("image_id", "fold"), ("dataset", "image_id", "fold"), ("fold", "patient_id")])
def test_a_table_gives_each_image_its_fold(
    name: str, columns: tuple[str, ...], data: list[PreparedDataset], tmp_path: Path
) -> None:
    assert folds_of(data, write(tmp_path / name, columns=columns)) == GIVEN


def test_splits_of_nnunet_give_each_image_its_fold(data: list[PreparedDataset], tmp_path: Path) -> None:
    path = tmp_path / "splits_final.json"
    splits = [
        {kind: [name for name, fold in GIVEN.items() if (fold == number) == is_in] for kind, is_in in kinds}
        for number, kinds in ((0, (("val", True), ("train", False))), (1, (("val", True), ("train", False))))
    ]
    path.write_text(json.dumps(splits))
    assert folds_of(data, str(path)) == GIVEN


def test_floats_of_pandas_are_whole_folds(data: list[PreparedDataset], tmp_path: Path) -> None:
    assert folds_of(data, write(tmp_path / "f.csv", {"extra": 1.0})) == GIVEN


@pytest.mark.parametrize("source", ["folds.csv", "splits"])
def test_written_folds_read_back_as_the_same(source: str, data: list[PreparedDataset], tmp_path: Path) -> None:
    rows = [row for part in data for row in part.index.to_pylist()]
    assigned = assign_folds(rows, group_rows(rows), 2, 3)
    write_fold_files(str(tmp_path), folds.with_groups_and_folds(fold_rows.index_of(rows), (), 2, 3))
    expected = dict(zip([row["image_id"] for row in rows], assigned, strict=True))
    if source == "folds.csv":
        assert folds_of(data, str(tmp_path / "folds.csv")) == expected
        return
    for part in data:
        read = folds_of([part], str(tmp_path / "folds" / part.name / "splits_final.json"))
        assert read == {name: fold for name, fold in expected.items() if name in read}


@pytest.mark.parametrize(
    ("changes", "columns", "message"),
    [
        ({"north_03": None}, ("image_id", "fold"), r"no fold for 1 of 8 images, first north/north_03: add them to it"),
        ({"north_03": "one"}, ("image_id", "fold"), "row 4 has fold 'one', expected a whole number from 0, or -1"),
        ({"north_03": 0.5}, ("image_id", "fold"), "row 4 has fold '0.5', expected a whole number"),
        ({"north_03": -2}, ("image_id", "fold"), "row 4 has fold '-2', expected a whole number"),
        ({"north_03": "nan"}, ("image_id", "fold"), "row 4 has fold 'nan', expected a whole number"),
        ({"north_03": "inf"}, ("image_id", "fold"), "row 4 has fold 'inf', expected a whole number"),
        ({}, ("image_id",), "columns image_id, expected fold, image_id or patient_id, and dataset"),
        ({}, ("dataset", "fold"), "columns dataset, fold, expected fold, image_id or patient_id"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(
    changes: dict[str, Any], columns: tuple[str, ...], message: str, data: list[PreparedDataset], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        folds_of(data, write(tmp_path / "folds.csv", changes, columns))


@pytest.mark.parametrize(("fold", "count"), [(2, 2), (1, 5), (6, 3)])
def test_another_number_of_folds_names_the_option(
    fold: int, count: int, data: list[PreparedDataset], tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match=rf"has the folds 0 to {fold}: pass --folds {fold + 1}"):
        folds_of(data, write(tmp_path / "folds.csv", {"south_02": fold}), count)


def test_one_id_with_two_folds_is_refused(tmp_path: Path) -> None:
    (tmp_path / "f.csv").write_text("image_id,fold\na,0\nb,1\na,1\n")
    with pytest.raises(InputError, match="row 3 gives a fold 1, an earlier row gives it fold 0: correct"):
        read_fold_table(str(tmp_path / "f.csv"))


def test_an_id_in_two_datasets_needs_the_dataset(data: list[PreparedDataset], tmp_path: Path) -> None:
    index = data[0].index.slice(0, 1)
    twins = [PreparedDataset(name, name, data[0].preprocess, _named(index, name), "0") for name in ("east", "west")]
    (tmp_path / "f.csv").write_text("image_id,fold\nnorth_00,0\n")
    with pytest.raises(InputError, match="names north_00, which is in east and in west: pass a table with the column"):
        with_folds(twins, read_fold_table(str(tmp_path / "f.csv")), 1)
    (tmp_path / "g.csv").write_text("dataset,image_id,fold\neast,north_00,0\nwest,north_00,1\n")
    given = with_folds(twins, read_fold_table(str(tmp_path / "g.csv")), 2)
    assert [part.index.column("fold").to_pylist() for part in given] == [[0], [1]]


def _named(index: Any, name: str) -> Any:
    return index.set_column(index.schema.get_field_index("dataset"), "dataset", pa.array([name]))


def test_images_of_one_patient_in_two_folds_are_refused() -> None:
    def index(patients: str) -> pa.Table:
        images = zip("abc", patients, (0, 1, 1), strict=True)
        rows = [
            {"dataset": "north", "image_id": name, "patient_id": patient, "pixel_digest": name, "fold": fold}
            for name, patient, fold in images
        ]
        return folds.with_groups_and_folds(fold_rows.index_of(rows), (), 2, 0)

    require_whole_groups(index("pqq"), "f.csv")
    with pytest.raises(SettingsError, match="north/a in fold 0 and north/b in fold 1 show one patient or are copies"):
        require_whole_groups(index("ppq"), "f.csv")


def test_column_names_of_a_fold_table_have_any_spelling(tmp_path: Path) -> None:
    (tmp_path / "f.csv").write_text("Data-Set,Image ID,FOLD\nd,a,1\n")
    assert dict(read_fold_table(str(tmp_path / "f.csv")).folds) == {("d", "a"): 1}
    (tmp_path / "f.csv").write_text("fold,image_id,Image-ID\n0,a,b\n")
    with pytest.raises(InputError, match="2 columns are called image_id or Image-ID"):
        read_fold_table(str(tmp_path / "f.csv"))
