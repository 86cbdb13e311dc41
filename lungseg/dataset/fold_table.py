"""Fold tables: the folds of images from a CSV, a Parquet file or nnU-Net's splits_final.json, and back to files."""

import csv
import io
import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import IO

import numpy as np
import pyarrow as pa

from lungseg import storage
from lungseg.arrays import Row
from lungseg.dataset.catalog import PreparedDataset
from lungseg.dataset.folds import ASSIGNED_FOLD, GROUP, codes
from lungseg.dataset.masked_rows import groups_within, masked, masked_rows
from lungseg.errors import InputError, SettingsError
from lungseg.ingest.file_names import image_id
from lungseg.ingest.sources.nnunet_json import read_folds
from lungseg.ingest.sources.text_tables import column_names, find_column, read_columns
from lungseg.plurals import counted

logger = logging.getLogger(__name__)

_COLUMNS = ("dataset", "image_id", "patient_id", "fold")
_MAX_NNUNET_IMAGES = 1_000_000
_ROWS_AT_ONCE = 1 << 16


@dataclass(frozen=True)
class FoldTable:
    """Folds by (dataset, id); the dataset is "" where the table does not name it. key: image_id or patient_id."""

    path: str
    key: str
    folds: Mapping[tuple[str, str], int]

    def fold_of(self, row: Row) -> int | None:
        """Return the fold of an index row; None if the table does not name it."""
        row_id = row[self.key] or row["image_id"]
        return self.folds.get((row["dataset"], row_id), self.folds.get(("", row_id)))


def read_fold_table(path: str) -> FoldTable:
    """Read a table with the columns fold, image_id or patient_id, and dataset; or splits_final.json.

    Raises:
        InputError: the file cannot be read, lacks a column, or gives one image or patient two folds.

    """
    if path.endswith(".json"):
        return FoldTable(path, "image_id", {("", image_id(case)): fold for case, fold in read_folds(path).items()})
    content = storage.read_bytes(path)
    present = column_names(content, path)
    names = {name: column for name in _COLUMNS if (column := find_column(name, present, path)) is not None}
    key = next((name for name in ("image_id", "patient_id") if name in names), "")
    if not key or "fold" not in names:
        raise InputError(
            f"{path}: columns {', '.join(present)}, expected fold, image_id or patient_id, and "
            "dataset if there are several: rename the columns"
        )
    columns = read_columns(content, path, names.values())
    cells = {name: columns[column] for name, column in names.items()}
    datasets = cells.get("dataset") or [""] * len(cells["fold"])
    folds: dict[tuple[str, str], int] = {}
    for row, (dataset, row_id, text) in enumerate(zip(datasets, cells[key], cells["fold"], strict=True), 1):
        fold = _fold(text, path, row)
        if folds.setdefault((dataset, row_id), fold) != fold:
            raise InputError(
                f"{path}: row {row} gives {row_id} fold {fold}, an earlier row gives it fold {folds[dataset, row_id]}: "
                "correct one of them"
            )
    return FoldTable(path, key, folds)


def with_folds(data: Sequence[PreparedDataset], table: FoldTable, folds: int) -> list[PreparedDataset]:
    """Return the datasets with the folds of a table in the column `fold` of their index.

    Raises:
        InputError: an image has no fold, or two datasets have an id that the table names without a dataset.
        SettingsError: the table has another number of folds.

    """
    names = ["dataset", "image_id", "patient_id", "mask_size"]
    rows = [dataset.index.select(names).to_pylist() for dataset in data]
    given = [[table.fold_of(row) if row["mask_size"] else None for row in own] for own in rows]
    missing = [
        f"{row['dataset']}/{row['image_id']}"
        for dataset_rows, values in zip(rows, given, strict=True)
        for row, fold in zip(dataset_rows, values, strict=True)
        if fold is None and row["mask_size"]
    ]
    total = sum(map(len, rows))
    if missing:
        raise InputError(
            f"{table.path}: no fold for {len(missing)} of {counted(total, 'image')}, first {missing[0]}: add them to it"
        )
    _require_unique([[row for row in own if row["mask_size"]] for own in rows], table)
    highest = max(fold for values in given for fold in values if fold is not None)
    if highest + 1 != folds:
        raise SettingsError(f"--folds-from {table.path} has the folds 0 to {highest}: pass --folds {highest + 1}")
    return [
        replace(dataset, index=_with_column(dataset.index, values)) for dataset, values in zip(data, given, strict=True)
    ]


def require_whole_groups(index: pa.Table, path: str) -> None:
    """Check that a table keeps the images of each group, such as a patient, in one fold.

    index: of `folds.with_groups_and_folds`.

    Raises:
        SettingsError: it does not.

    """
    groups = groups_within(index.column(GROUP).to_numpy(), masked(index))
    index = masked_rows(index)
    fold_of = index.column("fold").to_numpy()
    apart = np.flatnonzero(fold_of != fold_of[groups])
    if apart.size:
        rows = index.select(["dataset", "image_id", "fold"]).take([groups[apart[0]], apart[0]]).to_pylist()
        names = [f"{row['dataset']}/{row['image_id']} in fold {row['fold']}" for row in rows]
        raise SettingsError(
            f"--folds-from {path}: {' and '.join(names)} show one patient or are copies: give both the same fold"
        )


def write_fold_files(folder: str, index: pa.Table) -> None:
    """Write folds.csv, and folds/<dataset>/splits_final.json of nnU-Net, into a folder; of the rows with a mask.

    nnU-Net's file repeats the id of each image in every fold, so a dataset of more than a million images has none.

    index: of `folds.with_groups_and_folds`.
    """
    rows = masked_rows(index).select(["dataset", "image_id", "patient_id", ASSIGNED_FOLD])
    storage.write_stream(storage.join(folder, "folds.csv"), lambda file: _write_csv(file, rows))
    names, dataset_of = codes(rows.column("dataset"))
    fold_count = int(rows.column(ASSIGNED_FOLD).to_numpy().max()) + 1
    for code, dataset in enumerate(names):
        own = np.flatnonzero(dataset_of == code)
        if own.size > _MAX_NNUNET_IMAGES:
            logger.info("%s: no splits_final.json for nnU-Net, which would list %d images", dataset, own.size)
            continue
        images = rows.take(own)
        path = storage.join(folder, "folds", dataset, "splits_final.json")
        storage.write_bytes(path, (json.dumps(_nnunet_splits(images, fold_count), indent=1) + "\n").encode())


def _write_csv(file: IO[bytes], rows: pa.Table) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for batch in rows.to_batches(_ROWS_AT_ONCE):
        writer.writerows(zip(*(column.to_pylist() for column in batch.columns), strict=True))
        file.write(text.getvalue().encode())
        text.seek(0)
        text.truncate()
    file.write(text.getvalue().encode())


def _nnunet_splits(images: pa.Table, fold_count: int) -> list[dict[str, list[str]]]:
    ids, folds = images.column("image_id").to_pylist(), images.column(ASSIGNED_FOLD).to_pylist()
    return [
        {
            "train": [image for image, image_fold in zip(ids, folds, strict=True) if image_fold != fold],
            "val": [image for image, image_fold in zip(ids, folds, strict=True) if image_fold == fold],
        }
        for fold in range(fold_count)
    ]


def _fold(text: str, path: str, row: int) -> int:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not (number >= -1 and number.is_integer()):
        raise InputError(
            f"{path}: row {row} has fold {text!r}, expected a whole number from 0, or -1 to train on it in every fold"
        )
    return int(number)


def _require_unique(rows: Sequence[Sequence[Row]], table: FoldTable) -> None:
    """Check that an id which the table names without a dataset is in one dataset only."""
    dataset_of: dict[str, str] = {}
    for row in (row for dataset_rows in rows for row in dataset_rows):
        row_id = row[table.key] or row["image_id"]
        other = dataset_of.setdefault(row_id, row["dataset"])
        if other != row["dataset"] and ("", row_id) in table.folds:
            raise InputError(
                f"{table.path} names {row_id}, which is in {other} and in {row['dataset']}: pass a table with the "
                "column dataset"
            )


def _with_column(index: pa.Table, folds: Sequence[int | None]) -> pa.Table:
    column = pa.array(folds, pa.int32())
    position = index.schema.get_field_index("fold")
    return index.append_column("fold", column) if position < 0 else index.set_column(position, "fold", column)
